"""Bad records of every form are counted and change nothing else; bad files are one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dataset_records import (
    built,
    nq_open,
    nq_train,
    older_passage,
    passage,
    refusal,
    web,
    wise,
    write,
    write_names,
    zsre_json,
    zsre_jsonl,
)

from grace_bench.datasets.reading.markup import without_markup

LOST = "lost \ufffd"
HALF = "half \ud800"
GONE = object()
N = 9


def case(n):
    return {"text": f"The opinion of case {n}.", "label": f"topic {n % 2}"}


def term_case(n):
    return {**case(n), "case": f"c{n}", "term": 1990 + n}


def others(folder, builder):
    """Options of a builder, on good files, beside the source that a test writes."""
    if builder == "zsre":
        return {
            "edits": write(folder / "good-zsre.jsonl", [zsre_jsonl(n) for n in range(4)]),
            "upstream": write(folder / "good-nq.jsonl", [nq_open(n) for n in range(4)]),
            "edit_phrasings": 1,
        }
    if builder == "scotus":
        cases = [{"text": f"An older case {n}", "label": f"topic {n % 2}"} for n in range(4)]
        return {"upstream": write(folder / "good-older.jsonl", cases)}
    if builder == "table":
        terms = {"term_column": "term", "train_before": 1996}
        return {**terms, "id_column": "case", "upstream_size": 2}
    return {
        "edits": write(folder / "good-passages.json", [passage(0)]),
        "concepts": write_names(folder / "good-names.txt"),
        "web": write(folder / "good-web.jsonl", [web(n) for n in range(5)]),
    }


@dataclass(frozen=True)
class Form:
    """A form of records: how to write them, who reads them, what may be wrong with one."""

    record: Callable[[int], dict[str, Any]]
    builder: str
    option: str
    file: str
    faults: dict[str, dict[str, Any]]
    columns: bool = False

    def options(self, folder: Path, records: list, **keys: Any) -> dict[str, Any]:
        """Write the records; return the options of the builder that reads them, `keys` of them."""
        path = write(folder / self.file, records, self.columns)
        source = (
            {"path": path, **keys}
            if self.option == "path"
            else {self.option: {"path": path, **keys}}
        )
        return {**others(folder, self.builder), **source}


FORMS = {
    "zsre jsonl": Form(
        zsre_jsonl,
        "zsre",
        "edits",
        "zsre.jsonl",
        {
            "record without 'input'": {"input": GONE},
            "record without 'output'": {"output": None},
            "record without 'filtered_rephrases'": {"filtered_rephrases": GONE},
            "record whose 'input' is not text": {"input": ["Who?"]},
            "empty zsRE question": {"input": " "},
            "undecodable zsRE question": {"input": LOST},
            "empty zsRE answer": {"output": [{"answer": ""}]},
            "undecodable zsRE answer": {"output": [{"answer": HALF}]},
            "zsRE record with the id of an earlier one": {"id": "r1"},
        },
    ),
    "zsre json": Form(
        zsre_json,
        "zsre",
        "edits",
        "zsre.json",
        {
            "record without 'src'": {"src": GONE},
            "record without 'answers'": {"answers": float("nan")},
            "record whose 'src' is not text": {"src": {"text": "Who?"}},
            "empty zsRE question": {"src": ""},
            "undecodable zsRE question": {"src": HALF},
            "empty zsRE answer": {"answers": []},
            "undecodable zsRE answer": {"answers": [LOST]},
        },
    ),
    "nq_train": Form(
        nq_train,
        "zsre",
        "upstream",
        "nq_train.json",
        {
            "record without 'answers'": {"answers": None},
            "empty NQ question": {"questions": " "},
            "undecodable NQ question": {"questions": LOST},
            "empty NQ answer": {"answers": ""},
            "undecodable NQ answer": {"answers": LOST},
            "NQ question repeated": {"questions": "WHICH  is number 1?", "answers": "n1"},
            "NQ question repeated with another answer": {"questions": "Which is number 1"},
            "NQ question that is also a zsRE question": {"questions": "who made thing 2"},
        },
        columns=True,
    ),
    "nq_open": Form(
        nq_open,
        "zsre",
        "upstream",
        "nq-open.jsonl",
        {
            "record without 'question'": {"question": GONE},
            "record without 'answer'": {"answer": None},
            "record whose 'question' is not text": {"question": ["who"]},
            "empty NQ answer": {"answer": [" "]},
            "undecodable NQ question": {"question": LOST},
            "NQ question repeated with another answer": {"question": "Which is number 1?"},
            "NQ question that is also a zsRE question": {"question": "WHO  made thing 2?"},
        },
    ),
    "nq of mend": Form(
        zsre_json,
        "zsre",
        "upstream",
        "loc.json",
        {
            "record without 'loc_ans'": {"loc_ans": None},
            "empty NQ question": {"loc": "nq question: "},
            "NQ question repeated with another answer": {"loc": "nq question: which is 1?"},
        },
    ),
    "scotus": Form(
        case,
        "scotus",
        "edits",
        "later.jsonl",
        {
            "record without 'text'": {"text": GONE},
            "record without 'label'": {"label": None},
            "record whose 'text' is not text": {"text": ["a", "b"]},
            "empty text": {"text": ""},
            "undecodable text": {"text": HALF},
            "empty label": {"label": " "},
            "undecodable label": {"label": LOST},
            "stream text repeated": {"text": "THE OPINION of  case 1", "label": "topic 1"},
            "stream text repeated with another label": {
                "text": "the opinion of case 1",
                "label": "topic 0",
            },
            "edits row whose label is not a class": {"label": "another"},
        },
    ),
    "table": Form(
        term_case,
        "table",
        "path",
        "cases.jsonl",
        {
            "empty text": {"text": None},
            "undecodable text": {"text": LOST},
            "empty label": {"label": ""},
            "undecodable label": {"label": LOST},
            "empty term": {"term": None},
            "text repeated": {"text": "THE OPINION of  case 1", "label": "topic 1"},
            "text repeated with another label": {
                "text": "the opinion of case 1",
                "label": "topic 0",
            },
            "label of the stream that is never taught": {"label": "another"},
        },
    ),
    "hallucination hub": Form(
        passage,
        "hallucination",
        "edits",
        "hub.jsonl",
        {
            "record without 'annotation'": {"annotation": GONE},
            "record without 'wiki_bio_text'": {"wiki_bio_text": None},
            "record whose 'wiki_bio_text' is not text": {"wiki_bio_text": ["He."]},
            "passage whose sentences or annotations are not a list": {
                "gpt3_sentences": "He lived."
            },
            "passage with more sentences than annotations, or fewer": {"annotation": ["accurate"]},
            "passage with an unknown annotation": {"annotation": ["accurate"] * 3 + ["odd"]},
            "passage with an empty sentence or no Wikipedia text": {
                "gpt3_sentences": ["He."] * 3 + ["."]
            },
            "passage with undecodable text": {"wiki_bio_text": HALF},
            "passage with the wiki_bio_test_idx of an earlier one": {"wiki_bio_test_idx": 101},
        },
    ),
    "hallucination 119": Form(
        older_passage,
        "hallucination",
        "edits",
        "older.json",
        {
            "record without 'wiki_bio_test_idx'": {"wiki_bio_test_idx": None},
            "passage whose sentences or annotations are not a list": {
                "main_sentences": "[open(1)]"
            },
            "passage with an empty sentence or no Wikipedia text": {"wiki_bio_text": ""},
            "passage with undecodable text": {"main_sentences": repr(["He."] * 3 + [LOST])},
        },
    ),
    "hallucination wise": Form(
        wise,
        "hallucination",
        "edits",
        "wise.json",
        {
            "record without 'target_new'": {"target_new": GONE, "locality_prompt": None},
            "record whose 'prompt' is not text": {"prompt": ["He."], "locality_prompt": None},
            "empty prompt": {"prompt": "", "locality_prompt": None},
            "empty target": {"target_new": " ", "locality_prompt": None},
            "undecodable target": {"target_new": LOST, "locality_prompt": None},
            "undecodable subject": {"subject": HALF, "locality_prompt": None},
            "prompt repeated": {
                "prompt": "This is a  WIKIPEDIA passage about man 1. He lived",
                "target_new": "He died in 1901.",
                "locality_prompt": None,
            },
            "prompt repeated with another target": {
                "prompt": wise(1)["prompt"],
                "locality_prompt": None,
            },
        },
    ),
    "webtext": Form(
        web,
        "hallucination",
        "web",
        "webtext.jsonl",
        {
            "record without 'text'": {"text": None},
            "record whose 'text' is not text": {"text": ["a b c d"]},
            "empty web text": {"text": "<|endoftext|>"},
            "undecodable web text": {"text": f"{LOST} in the middle"},
            "web text repeated": {"text": "TEXT 1 goes on and  on and on here"},
        },
    ),
}


@pytest.mark.parametrize(
    ("form", "reason"),
    [(name, reason) for name, form in FORMS.items() for reason in form.faults],
)
def test_a_bad_record_is_counted_and_changes_nothing_else(tmp_path, form, reason):
    form = FORMS[form]
    good = [form.record(n) for n in range(N)]
    bad = {**form.record(N), **form.faults[reason]}
    bad = {key: value for key, value in bad.items() if value is not GONE}
    without = built(form.builder, **form.options(tmp_path, good))
    made = built(form.builder, **form.options(tmp_path, [*good, bad]))
    counted = {r: n - without.dropped.get(r, 0) for r, n in made.dropped.items()}
    assert counted.pop(reason) == 1
    # The locality pair of a record of WISE is judged by itself.
    counted.pop("record without 'locality_prompt'", None)
    assert not any(counted.values())
    assert made.roles == without.roles


@pytest.mark.parametrize("name", FORMS)
def test_a_file_with_another_hash_is_refused(tmp_path, name):
    form = FORMS[name]
    options = form.options(tmp_path, [form.record(n) for n in range(N)], sha256="0" * 64)
    assert ", expected 0000" in refusal(form.builder, **options)


@pytest.mark.parametrize("name", FORMS)
def test_a_file_with_undecodable_bytes_is_refused(tmp_path, name):
    form = FORMS[name]
    options = form.options(tmp_path, [form.record(n) for n in range(N)])
    path = tmp_path / form.file
    path.write_bytes(path.read_bytes().replace(b" 1", b" \xe9", 1))
    assert "not UTF-8" in refusal(form.builder, **options)


def test_a_repeated_id_of_a_table_is_refused(tmp_path):
    records = [term_case(n) for n in range(N)]
    records[8]["case"] = "c1"
    said = refusal("table", **FORMS["table"].options(tmp_path, records))
    assert "row 9 has the id 'c1' of an earlier row" in said


def test_names_with_undecodable_characters_are_refused(tmp_path):
    options = others(tmp_path, "hallucination")
    Path(options["concepts"]).write_text(f"ada {LOST}\n")
    said = refusal("hallucination", **options)
    assert "good-names.txt: line 1 has undecodable characters" in said


def test_an_undecodable_subject_is_counted_and_the_question_kept(tmp_path):
    records = [zsre_json(n) for n in range(N)]
    records[3]["subject"] = LOST
    made = built("zsre", **FORMS["zsre json"].options(tmp_path, records))
    assert made.dropped["undecodable subject"] == 1
    assert [row["subject"] for row in made.roles["edits"]].count(None) == 1


def test_records_of_one_subject_and_answer_are_one_fact(tmp_path):
    records = [zsre_json(n) for n in range(4)]
    records[1] = {
        **records[1],
        "subject": "Thing  0",
        "src": "What is the name of thing 0's maker?",
        "rephrase": "Thing 0 has which maker?",
        "answers": ["maker 0"],
    }
    records[2]["subject"] = "thing 0"  # another answer: another fact
    roles = built("zsre", **FORMS["zsre json"].options(tmp_path, records)).roles
    facts = [row["fact_id"] for row in roles["edits"] + roles["holdout"]]
    assert {fact: facts.count(fact) for fact in facts} == {"zsre:0": 4, "zsre:2": 2, "zsre:3": 2}
    assert len(roles["edits"]) == 3


def test_markup_is_removed_on_request_and_counted(tmp_path):
    records = [term_case(n) for n in range(N)]
    records[7]["text"] = "In <i>Chimel</i>, A &amp; B sued.<br/>They won."
    options = FORMS["table"].options(tmp_path, records)
    kept = built("table", **options)
    assert kept.roles["edits"][1]["text"] == records[7]["text"]
    plain = built("table", **options, strip_markup=True)
    assert plain.roles["edits"][1]["text"] == "In Chimel, A & B sued. They won."
    assert plain.dropped == {"markup removed from a text": 1}


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a < b and <b>c</b> > d", "a < b and c > d"),
        ("if a <b and c> d", "if a <b and c> d"),
        ("<name> of <em>AT&T;</em>", "<name> of AT&T;"),
        ("&#167; 5 and &sect; 6<!-- gone -->", "\u00a7 5 and \u00a7 6"),
        ("<i>never closed", "never closed"),
        ("a <!-- never closed", "a <!-- never closed"),
        ('one<p class="x">two</p>', "one two "),
        ('<a title="x > y">b</a>', '<a title="x > y">b'),  # rather kept than cut in two
        ("<i>a</i> <!doctype x> <?y>", "a <!doctype x> <?y>"),
    ],
)
def test_only_html_is_markup(text, plain):
    assert without_markup(text) == plain
