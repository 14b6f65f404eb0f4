"""Generated pages are up to date, and what the pages say can be done."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import scratch_models
import torch
import yaml
from plugins import install
from transformers import GPT2Config, GPT2LMHeadModel

from grace_bench.cli import build_parser
from grace_bench.cli.options import run_of, suite_of
from grace_bench.codebook.file import import_codebook
from grace_bench.library import EditedModel
from grace_bench.metrics import Answer
from grace_bench.models.scratch import train_tokenizer
from grace_bench.reporting.summary.read import MISSING, Estimate
from grace_bench.reporting.summary.write import CURVES, SUMMARY
from grace_bench.reporting.tables.table import to_markdown
from grace_bench.steps.skeleton import write_skeleton
from grace_bench.store import schemas
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
def test_the_order_of_the_rules_is_the_workflows(repository, update_readme):
    page = (repository / "docs/reference/commands.md").read_text()
    assert update_readme.rule_order() in page


def test_the_small_table_is_made_of_the_main_one(tmp_path, update_readme):
    lines = [
        "row,column,printed,best",
        '"FT","Topics, BERT: Acc., higher is better: TRR",.90,false',
        '"FT","Topics, BERT: Acc., higher is better: ERR",.80,true',
        '"FT","Topics, BERT: Acc., higher is better: Holdout",.70,true',
        '"FT","Passages, GPT-2: PPL, lower is better: ERR",3.10,false',
    ]
    (tmp_path / "main.csv").write_text("\n".join(lines))
    assert update_readme.small_table(tmp_path / "main.csv").splitlines() == [
        "| Editor | Topics, Acc. ↑: TRR | Topics, Acc. ↑: ERR | Passages, PPL ↓: ERR |",
        "| :-- | --: | --: | --: |",
        "| FT | .90 | **.80** | 3.10 |",
    ]


@pytest.fixture(scope="module")
def pages(repository) -> dict[str, str]:
    """Every page with commands in it, by its path."""
    docs = (path for path in (repository / "docs").rglob("*.md") if "_build" not in path.parts)
    paths = [repository / "README.md", repository / "CONTRIBUTING.md", *sorted(docs)]
    return {path.relative_to(repository).as_posix(): path.read_text() for path in paths}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(repository, tmp_path):
    arguments = ["-q", "-W", "--keep-going", "-d", str(tmp_path / "doctrees"), "docs"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *arguments, str(tmp_path / "site")],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site/reference/api.html").read_text()
    assert 'id="grace_bench.editors.create_editor"' in api
    settings = (tmp_path / "site/reference/settings.html").read_text()
    assert "eps_init, the deferral radius" in settings
    assert "prepare-data" in (tmp_path / "site/reference/commands.html").read_text()


def test_files_that_the_pages_name_exist(repository, pages):
    for page, text in pages.items():
        folder = (repository / page).parent
        missing = [
            link
            for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
            if not (folder / link).exists()
        ]
        named = re.findall(r"`((?:config|grace_bench|tests|docs|workflow)/[\w./-]+\.\w+)`", text)
        missing += [name for name in named if not (repository / name).exists()]
        # The user's own editor is an example.
        assert set(missing) <= {"config/editors/my_editor.yaml"}, page


def test_each_id_of_a_quirk_that_the_code_names_has_its_entry(repository):
    page = (repository / "docs/reference/quirks.md").read_text()
    entries = set(re.findall(r"^(?:\| )?([GMPR]\d+)(?: \||$)", page, flags=re.M))
    named = {
        (path.name, name)
        for path in (repository / "grace_bench").rglob("*.py")
        for name in re.findall(r"\b([GMPR]\d{1,2})\b", path.read_text())
    }
    assert {name for _, name in named} >= {"G6", "P3"}
    assert {(file, name) for file, name in named if name not in entries} == {
        ("installed.py", "M49")  # a standard of the UN
    }


def test_each_column_of_the_files_is_explained(repository):
    page = (repository / "docs/reference/files.md").read_text()
    explained = set(re.findall(r"`(\w+)`", page))
    found = [*vars(schemas).values(), schemas.predictions_schema(), SUMMARY, CURVES]
    columns = {name for value in found if isinstance(value, pa.Schema) for name in value.names}
    assert columns - explained - {"relation"} == set()


def test_the_measure_and_the_table_of_the_docs_work(pages):
    measure, table = blocks(pages["docs/how-to/task.md"], "python")
    exec(measure, found := {})
    scores = [found["MEASURE"].score(Answer(text, ["Oslo"])) for text in ("Oslo, Norway", "Rome")]
    assert scores == [1.0, 0.0]
    exec(table, found := {})
    experiment = SimpleNamespace(title="Topics, BERT")
    settings = [SimpleNamespace(editor_label=name, experiment=experiment) for name in ("FT", "G")]
    estimates = {"FT": MISSING, "G": Estimate(7.0, None, None, None, 1)}
    summary = SimpleNamespace(settings=settings, get=lambda s, _: estimates[s.editor_label])
    [made] = found["make"](summary)
    assert "| G | Topics, BERT | 7 |" in to_markdown(made)


def test_the_suite_of_the_docs_is_one(repository, pages):
    [block] = [b for b in blocks(pages["docs/how-to/suite.md"], "yaml") if "my-suite" in b]
    suite = load_suite(yaml.safe_load(block), repository / "config")
    swept = 2 * 3 * (1 + 1 + 3)
    assert len(expand(suite)) == swept + 3  # the radius configured for facts-qa is run, too


def blocks(page: str, language: str = "") -> list[str]:
    """Return a page's code blocks of one language."""
    found = re.findall(r"^```(\S*)[^\n]*\n(.*?)^```$", page, flags=re.M | re.S)
    return [content for name, content in found if name == language]


RECORDED = ("snakemake", "grace-bench", "make", "git", "pip", "pytest", "tmux", "cp")


@pytest.fixture(scope="module")
def commands(pages, tmp_path_factory) -> list[list[str]]:
    """Every command of the pages, as a shell takes it apart; none is carried out."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "clone" / ".venv" / "bin").mkdir(parents=True)
    (folder / "clone" / ".venv" / "bin" / "activate").touch()
    (folder / "clone" / "grace-bench").symlink_to(".")
    (folder / "clone" / "my-study").mkdir()
    recorder = folder / "bin" / "recorder"
    recorder.parent.mkdir()
    recorder.write_text('#!/bin/sh\nprintf "%s\\0" "${0##*/}" "$@" "" >> "$RECORD"\n')
    recorder.chmod(0o755)
    for name in RECORDED:
        (folder / "bin" / name).symlink_to(recorder)
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "RECORD": str(folder / "log")}
    for page, text in pages.items():
        for block in blocks(text):
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
    assert {line[0] for line in found} >= {"plan", "edit", "toy", "status", "collect", "init"}
    for line in found:
        options = build_parser().parse_args(line)
        if line[0] == "edit" and "my_editor" not in line:
            assert run_of(options).spec.editor.hyperparameters
        if line[0] in ("plan", "status") and options.suite is not None:
            assert suite_of(options).experiments


def test_each_make_target_of_the_pages_is_one(repository, commands, pages):
    targets = {target for line in commands if line[0] == "make" for target in line[1:]}
    targets |= set(re.findall(r"`make (\w+)`", "".join(pages.values())))
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
def my_package(pages, tmp_path):
    """The package of the docs' editor, with the docs' code in it, as if it were installed."""
    folder = tmp_path / "my_editor"
    write_skeleton("editor", "my_editor", folder)
    [code] = [b for b in blocks(pages["docs/how-to/editor.md"], "python") if "MyEditor" in b]
    (folder / "my_editor/editor.py").write_text(code)
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
    install(folder, "my-editor", "editors", points["grace_bench.editors"], version="0.1")
    return folder


@pytest.mark.slow
def test_the_editor_of_the_docs_keeps_the_contract(repository, my_package):
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
def test_the_fact_of_the_docs_is_learnt(pages, tmp_path):
    [script] = [block for block in blocks(pages["docs/start.md"], "python") if "my-model" in block]
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
    assert done.stdout == "Oslo\nTrue\n[]\n"
    assert (tmp_path / "edited" / "codebook.safetensors").is_file()


def test_the_examples_of_the_library_page_run(pages, tmp_path, monkeypatch):
    """All but the last one, which needs a run: test_load_run.py."""
    *examples, _ = blocks(pages["docs/how-to/library.md"], "python")
    monkeypatch.chdir(tmp_path)
    facts = [("Who wrote Emma?", "Jane Austen"), ("Where is the Louvre?", "Paris")]
    for name in ("a", "b"):
        model, tokenizer = scratch_models.make("gpt2", "question_answering", sum(facts, ()))
        edited = EditedModel(model, tokenizer, layer="transformer.h.0.mlp.c_fc", steps=2)
        edited.edit_all(facts)
        edited.save_pretrained("others")
        edited.save_pretrained("edited")
        Path("edited/codebook.safetensors").rename(f"{name}.safetensors")
    edited.undo(edited.receipts[0])
    edited.edit("Who wrote Dracula?", "Bram Stoker")
    model, tokenizer = scratch_models.make("gpt2", "question_answering", sum(facts, ()))
    names = {"edited": edited, "prompt": facts[1][0], "EditedModel": EditedModel}
    names |= {"model": model, "tokenizer": tokenizer}
    for example in examples:
        exec(example, names)
    assert names["found"].prompts == (facts[1][0],)
    assert [one.prompt for one in edited.receipts] == [facts[1][0]]
    assert [one.number for one in names["again"].receipts] == [2, 4, 5]
    assert len(import_codebook("merged.parquet")) == len(names["older"])


def test_editors_have_the_settings_that_were_chosen(repository):
    page = (repository / "docs/results/hyperparameters.md").read_text()
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
