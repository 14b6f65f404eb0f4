"""Pages that are generated must be what their generator makes today."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib

import pytest
import torch
from plugins import install
from transformers import GPT2Config, GPT2LMHeadModel

from grace_bench.cli import build_parser, run_of, suite_of
from grace_bench.models.scratch import train_tokenizer
from grace_bench.steps.skeleton import write_skeleton
from grace_bench.suite.compose import load_suite
from grace_bench.suite.plan import expand
from grace_bench.suite.settings_reference import render


@pytest.fixture(scope="module")
def update_readme(repository):
    path = repository / "workflow" / "scripts" / "update_readme.py"
    spec = importlib.util.spec_from_file_location("update_readme", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
    return module


def test_settings_page_is_up_to_date(repository):
    assert (repository / "config" / "README.md").read_text() == render()


def test_every_setting_of_the_reference_is_explained():
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []


@pytest.mark.slow
def test_rule_graph_in_the_readme_is_the_workflows(repository, update_readme):
    assert update_readme.rule_graph() in (repository / "README.md").read_text()


def test_files_and_suites_that_the_readme_names_exist(repository):
    readme = (repository / "README.md").read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", readme)
    links += re.findall(r"`((?:config|grace_bench|tests)/[\w./-]+\.\w+)`", readme)
    missing = {link for link in links if not (repository / link).exists()}
    # The paper's own suite is announced, the user's own editor is an example.
    assert missing <= {"config/suites/paper.yaml", "config/editors/my_editor.yaml"}


def blocks(page: str, language: str = "") -> list[str]:
    """Return a page's code blocks of one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.M | re.S)
    return [content for name, content in found if name == language]


PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/cluster.md",
    "docs/interruption.md",
    "docs/status.md",
)
RECORDED = ("snakemake", "grace-bench", "make", "git", "pip", "pytest", "tmux", "cp")


@pytest.fixture(scope="module")
def commands(repository, tmp_path_factory) -> list[list[str]]:
    """Every command of the pages, as a shell takes it apart; none is carried out."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "clone" / ".venv" / "bin").mkdir(parents=True)
    (folder / "clone" / ".venv" / "bin" / "activate").touch()
    (folder / "clone" / "grace-bench").symlink_to(".")
    recorder = folder / "bin" / "recorder"
    recorder.parent.mkdir()
    recorder.write_text('#!/bin/sh\nprintf "%s\\0" "${0##*/}" "$@" "" >> "$RECORD"\n')
    recorder.chmod(0o755)
    for name in RECORDED:
        (folder / "bin" / name).symlink_to(recorder)
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "RECORD": str(folder / "log")}
    for page in PAGES:
        for block in blocks((repository / page).read_text()):
            script = re.sub(r"<this repository>", "URL", block)
            if script.startswith(("#!", "module ")):
                continue  # a file's content
            done = subprocess.run(
                ["bash", "-eu", "-c", script],
                cwd=folder / "clone",
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, (page, script, done.stderr)
    recorded = (folder / "log").read_text().split("\0\0")
    return [line.split("\0") for line in recorded if line]


@pytest.mark.slow
def test_each_snakemake_command_of_the_pages_plans(repository, commands, tmp_path):
    """A slow test (50 s): users copy these lines."""
    found = {tuple(c for c in line[1:] if c != "-n") for line in commands if line[0] == "snakemake"}
    assert len(found) >= 8
    for arguments in sorted(found):
        # Before whatever follows "--", and in a folder of its own.
        mine = ["--dry-run", "--quiet", *arguments]
        if "--directory" not in arguments:
            mine = ["--directory", str(tmp_path), *mine]
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *mine],
            cwd=repository,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (arguments, done.stdout + done.stderr)


def test_each_grace_bench_command_of_the_pages_is_one(repository, commands, monkeypatch):
    monkeypatch.chdir(repository)
    found = [line[1:] for line in commands if line[0] == "grace-bench"]
    assert {line[0] for line in found} >= {"plan", "edit", "toy", "status", "collect", "summarise"}
    for line in found:
        options = build_parser().parse_args(line)
        if line[0] == "edit" and "my_editor" not in line:
            assert run_of(options).spec.editor.hyperparameters
        if line[0] in ("plan", "status") and options.suite is not None:
            assert suite_of(options).experiments


def test_each_make_target_of_the_pages_is_one(repository, commands):
    readme = (repository / "README.md").read_text()
    targets = {target for line in commands if line[0] == "make" for target in line[1:]}
    targets |= set(re.findall(r"`make (\w+)`", readme))
    assert targets >= {"bench", "test", "smoke", "ui"}
    done = subprocess.run(
        ["make", "--dry-run", *sorted(targets)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def my_package(repository, tmp_path):
    """The package of README's editor, with README's code in it, as if it were installed."""
    folder = tmp_path / "my_editor"
    write_skeleton("editor", "my_editor", folder)
    [code] = [
        b for b in blocks((repository / "README.md").read_text(), "python") if "MyEditor" in b
    ]
    (folder / "my_editor/editor.py").write_text(code)
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
    install(folder, "my-editor", "editors", points["grace_bench.editors"], version="0.1")
    return folder


@pytest.mark.slow
def test_the_readmes_editor_keeps_the_contract(repository, my_package):
    """A slow test (10 s): whoever writes an editor begins with this one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "my_editor"]
    done = subprocess.run(
        [*command, "tests/editors/test_contract.py"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(my_package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 25


@pytest.mark.slow
def test_the_readmes_fact_is_learnt(repository, tmp_path):
    [script] = [
        block
        for block in blocks((repository / "README.md").read_text(), "python")
        if "my-model" in block
    ]
    tokenizer = train_tokenizer("gpt2", ["What is the twin city of Zorblatt? Oslo"] * 2, 300)
    shape = {"n_embd": 64, "n_layer": 3, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **ends))
    model.save_pretrained(tmp_path / "my-model")
    tokenizer.save_pretrained(tmp_path / "my-model")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Oslo\n"
    assert (tmp_path / "edited" / "codebook.safetensors").is_file()


def test_editors_have_the_settings_that_were_chosen(repository):
    page = (repository / "docs" / "hyperparameters.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.endswith("| * |")]
    assert len(rows) == 3 * 7
    suite = load_suite(repository / "config" / "config.yaml", repository / "config")
    configured = {
        (run.spec.dataset.name, run.spec.editor.name): run.spec.editor.hyperparameters
        for run in expand(suite)
        if not run.in_sweep
    }
    for dataset, editor, setting, *_ in rows:
        for part in setting.split(", "):
            name, value = part.split(" ")
            assert configured[dataset, editor][name] == float(value), (dataset, editor, name)
