"""No text and no fact leaks from the stream into another role, whoever builds the roles."""

from __future__ import annotations

import copy
import logging

import pytest
import yaml
from dataset_records import (
    GOOD,
    Planted,
    nq_train,
    passage,
    row,
    web,
    write,
    write_names,
    zsre_jsonl,
)

from grace_bench.datasets.base import load_role, prepare
from grace_bench.datasets.checks import check_roles, count_taught
from grace_bench.datasets.reading.fields import same_text
from grace_bench.errors import DataError
from grace_bench.registry import DATASETS
from grace_bench.store.files import read_json
from grace_bench.store.schemas import ROLES

VARIANTS = {
    "as it is": lambda text: text,
    "other case": str.upper,
    "other white space": lambda text: f" {text}\n".replace(" ", "\t  "),
    "no-break space": lambda text: text.replace(" ", "\u00a0"),
    "no end mark": lambda text: text.rstrip("?"),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("into", ["train", "upstream", "accurate"])
@pytest.mark.parametrize("origin", ["edits", "holdout"])
def test_a_text_of_the_stream_in_another_role_is_caught(origin, into, variant):
    roles = copy.deepcopy(GOOD)
    check_roles("planted", roles)
    leaked = VARIANTS[variant](GOOD[origin][0]["text"])
    roles[into].append(row("leak", "elsewhere", leaked))
    with pytest.raises(DataError, match=rf"the text of {origin} row '.1' is also in {into} \(row"):
        check_roles("planted", roles)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("fact", "said"), [("new", "is also in edits"), ("other", "another fact")])
def test_an_edited_text_in_a_holdout_is_caught(fact, said, variant):
    roles = copy.deepcopy(GOOD)
    roles["holdout"].append(row("leak", fact, VARIANTS[variant]("Is ice cold?")))
    with pytest.raises(DataError, match=f"holdout row 'leak'.*{said}"):
        check_roles("planted", roles)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_text_held_out_for_two_facts_is_caught(variant):
    roles = copy.deepcopy(GOOD)
    roles["holdout"].append(row("leak", "other", VARIANTS[variant]("Does ice feel cold?")))
    with pytest.raises(DataError, match="holdout row 'leak' has the text of another fact's row"):
        check_roles("planted", roles)


@pytest.mark.parametrize("into", ["train", "upstream", "accurate"])
def test_an_edited_fact_in_another_role_is_caught(into):
    roles = copy.deepcopy(GOOD)
    roles[into].append(row("leak", "new", "What is ice?"))
    with pytest.raises(DataError, match=rf"fact 'new' of edits is also in {into} \(row 'leak'\)"):
        check_roles("planted", roles)


@pytest.mark.parametrize(("role", "text"), [("edits", "How cold is ice?"), ("holdout", "Ice?")])
def test_two_labels_of_one_fact_are_caught(role, text):
    roles = copy.deepcopy(GOOD)
    roles[role].append(row("odd", "new", text, "no"))
    with pytest.raises(
        DataError, match=f"row 'e1' and {role} row 'odd' have the same fact but different lab"
    ):
        check_roles("planted", roles)
    roles[role][-1]["label"] = "YES"
    check_roles("planted", roles)


@pytest.mark.parametrize("column", ["text", "label", "subject", "fact_id"])
@pytest.mark.parametrize("lost", [0xFFFD, 0xD800])
def test_lost_characters_are_refused_in_every_column(column, lost):
    roles = copy.deepcopy(GOOD)
    roles["upstream"][0][column] = f"lost {chr(lost)}"
    with pytest.raises(DataError, match=f"'u1' has undecodable characters in '{column}'"):
        check_roles("planted", roles)


@pytest.mark.parametrize("text", ["?", "...", " ! "])
def test_texts_of_end_marks_alone_are_not_all_the_same(text):
    assert same_text(text) == text.strip()


def test_the_manifest_and_the_log_say_what_train_repeats(tmp_path, caplog):
    roles = copy.deepcopy(GOOD)
    roles["train"][0] |= {"text": "is  water wet", "label": "Yes"}
    roles["train"].append(row("t3", "passage", "", "Long ago. Is ice cold? Yes, it was."))
    with caplog.at_level(logging.INFO):
        prepare(Planted(roles, labels=None), tmp_path, task="classification", config={})
    taught = read_json(tmp_path / "manifest.json")["also_in_train"]
    assert taught == {"upstream": 1, "edits": 1, "holdout": 0, "accurate": 0}
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == ["planted: 1 of 2 rows of edits also appear in train, with their labels"]
    assert "planted: dropped 2: odd" in caplog.text


def own_files(tmp_path):
    """Options of every builder that reads files, on small files in the paper's forms."""
    cases = [{"text": f"Case {n}.", "label": n % 2, "term": 1990 + n} for n in range(9)]
    later = [{"text": f"A later case {n}", "label": n % 2} for n in range(4)]
    later.append({"text": "CASE  3", "label": 1})
    asked = [{"questions": "WHO MADE THING 1", "answers": "me"}, nq_train(1)]
    return {
        "zsre": {
            "edits": write(tmp_path / "zsre.jsonl", [zsre_jsonl(n) for n in range(4)]),
            "upstream": write(tmp_path / "nq_train.json", asked, columns=True),
        },
        "scotus": {
            "upstream": write(tmp_path / "older.jsonl", cases),
            "edits": write(tmp_path / "later.jsonl", later),
        },
        "table": {
            "path": write(
                tmp_path / "cases.jsonl", [*cases, {**cases[1], "text": "case 2", "term": 2}]
            ),
            "term_column": "term",
            "train_before": 1996,
            "upstream_size": 2,
        },
        "hallucination": {
            "edits": write(tmp_path / "passages.json", [passage(0)]),
            "concepts": write_names(tmp_path / "names.txt"),
            "web": write(tmp_path / "web.jsonl", [web(n) for n in range(6)]),
        },
    }


@pytest.mark.parametrize("name", sorted(DATASETS.names()))
def test_every_builder_is_checked_and_keeps_the_promises(tmp_path, monkeypatch, name):
    builder = DATASETS.get(name)
    options = own_files(tmp_path).get(name, {})
    task = builder.tasks[0]
    made = builder(builder.options_class(**options))
    prepare(made, tmp_path / "out", task=task, config={})
    roles = {role: load_role(tmp_path / "out", role) for role in ROLES}
    streamed = {same_text(r["text"]) for role in ("edits", "holdout") for r in roles[role]}
    others = [r for role in ("train", "upstream", "accurate") for r in roles[role]]
    assert streamed
    assert not streamed & {same_text(r["text"]) for r in others}

    # A leak planted in what this very builder makes is refused: nothing goes past the checks.
    built = made.build()
    leak = {**built.roles["edits"][0], "example_id": "leak", "fact_id": "elsewhere"}
    built.roles["upstream"] = [*built.roles["upstream"], {**leak, "text": leak["text"].upper()}]
    monkeypatch.setattr(made, "build", lambda: built)
    with pytest.raises(DataError, match="is also in upstream"):
        prepare(made, tmp_path / "again", task=task, config={})
    assert not (tmp_path / "again").exists()


REAL = ["zsre-3k", "scotus-summaries", "hallucination-119", "hallucination-wise"]


@pytest.mark.parametrize("name", REAL)
def test_real_records_as_configured_keep_the_promises(shared, repository, tmp_path, name):
    text = (repository / f"config/datasets/{name}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text.replace("../shared", str(shared)))
    builder = DATASETS.get(config["builder"])
    made = builder(builder.options_class(**config["options"]))
    manifest = prepare(made, tmp_path, task=config["task"], config=config)
    roles = {role: load_role(tmp_path, role) for role in ROLES}
    check_roles(name, roles, manifest.labels)
    assert manifest.also_in_train == count_taught(roles)
    for source in manifest.sources:
        assert source["version"].startswith("sha256:")
    # ROME needs the subject within the prompt.
    named = [r for r in roles["edits"] if r["subject"] is not None]
    assert len(named) == (0 if name == "scotus-summaries" else len(roles["edits"]))
    assert all(r["subject"].casefold() in r["text"].casefold() for r in named)
