"""Bad records of every form are counted and change nothing else; bad files are one sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from grace_bench.datasets.builders.hallucination import Hallucination, HallucinationOptions
from grace_bench.datasets.builders.scotus import Scotus, ScotusOptions
from grace_bench.datasets.builders.table import Table, TableOptions
from grace_bench.datasets.builders.zsre import Zsre, ZsreOptions
from grace_bench.datasets.reading.markup import without_markup
from grace_bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

LOST = "lost \ufffd"
HALF = "half \ud800"
GONE = object()


def zsre_jsonl(n):
    return {
        "id": f"r{n}",
        "input": f"Who made thing {n}?",
        "output": [{"answer": f"Maker {n}"}],
        "filtered_rephrases": [f"By whom is thing {n}, number {m}?" for m in range(10)],
    }


def zsre_json(n):
    return {
        "subject": f"thing {n}",
        "src": f"Who made thing {n}?",
        "rephrase": f"By whom was thing {n} made?",
        "answers": [f"Maker {n}"],
        "loc": f"nq question: which is {n}",
        "loc_ans": f"n{n}",
    }


def nq_open(n):
    return {"question": f"which is number {n}", "answer": [f"n{n}"]}


def nq_train(n):
    return {"questions": f"which is number {n}", "answers": f"n{n}"}


def case(n):
    return {"text": f"The opinion of case {n}.", "label": f"topic {n % 2}"}


def term_case(n):
    return {**case(n), "case": f"c{n}", "term": 1990 + n}


def hub_passage(n):
    return {
        "gpt3_sentences": [f"Ada {n} was known.", f"Ada {n} lived in Rome."],
        "annotation": ["accurate", "major_inaccurate"],
        "wiki_bio_text": f"Ada {n} wrote. Ada {n} lived in Paris.",
        "wiki_bio_test_idx": n,
    }


def older_passage(n):
    passage = hub_passage(n)
    passage["main_sentences"] = passage.pop("gpt3_sentences")
    return passage


def wise(n):
    return {
        "prompt": f"This is a passage about man {n}. He lived.",
        "target_new": f"He died in {1900 + n}.",
        "subject": f"man {n}",
        "locality_prompt": f"The weather of day {n} was",
        "locality_ground_truth": "fine and dry",
    }


def web(n):
    return {"text": f"Text {n} goes on and on here."}


def write(path, records, columns=False):
    if columns:
        lists = {key: [r.get(key) for r in records] for key in records[0]}
        path.write_text(json.dumps(lists))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("".join(f"ada {n}\n" for n in range(30)))
    return str(path)


def web_file(tmp_path):
    return write(tmp_path / "web.jsonl", [web(n) for n in range(5)])


def zsre_of(tmp_path, **source):
    path = tmp_path / "other.jsonl"
    defaults = {
        "edits": write(path, [zsre_jsonl(n) for n in range(4)]),
        "upstream": write(tmp_path / "nq.jsonl", [nq_open(n) for n in range(4)]),
    }
    return Zsre(ZsreOptions(**{**defaults, **source}, edit_phrasings=1))


def wise_of(tmp_path, **source):
    return Hallucination(HallucinationOptions(**source))


def passages_of(tmp_path, **source):
    return Hallucination(
        HallucinationOptions(**{"web": web_file(tmp_path), **source}, concepts=names(tmp_path))
    )


def web_of(tmp_path, **source):
    passages = write(tmp_path / "passages.json", [hub_passage(0)])
    return passages_of(tmp_path, edits=passages, **source)


def scotus_of(tmp_path, **source):
    cases = [{"text": f"An older case {n}", "label": f"topic {n % 2}"} for n in range(4)]
    return Scotus(ScotusOptions(upstream=write(tmp_path / "older.jsonl", cases), **source))


def table_of(tmp_path, path, sha256=None):
    options = {"term_column": "term", "train_before": 1996, "id_column": "case"}
    return Table(TableOptions(path=path, sha256=sha256, upstream_size=2, **options))


@dataclass(frozen=True)
class Form:
    """A form of records: how to write them, who reads them, what may be wrong with one."""

    record: Callable[[int], dict[str, Any]]
    build: Callable[..., Any]
    option: str
    file: str
    faults: dict[str, dict[str, Any]]
    columns: bool = False


ZSRE_FAULTS = {"zsRE record with the id of an earlier one": {"id": "r1"}}
FORMS = {
    "zsre jsonl": Form(
        zsre_jsonl,
        zsre_of,
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
            **ZSRE_FAULTS,
        },
    ),
    "zsre json": Form(
        zsre_json,
        zsre_of,
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
        zsre_of,
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
        zsre_of,
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
        zsre_of,
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
        scotus_of,
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
        table_of,
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
        hub_passage,
        passages_of,
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
            "passage with an unknown annotation": {"annotation": ["accurate", "odd"]},
            "passage with an empty sentence or no Wikipedia text": {"gpt3_sentences": ["He.", "."]},
            "passage with undecodable text": {"wiki_bio_text": HALF},
            "passage with the wiki_bio_test_idx of an earlier one": {"wiki_bio_test_idx": 1},
        },
    ),
    "hallucination 119": Form(
        older_passage,
        passages_of,
        "edits",
        "older.json",
        {
            "record without 'wiki_bio_test_idx'": {"wiki_bio_test_idx": None},
            "passage whose sentences or annotations are not a list": {
                "main_sentences": "[open(1)]"
            },
            "passage with an empty sentence or no Wikipedia text": {"wiki_bio_text": ""},
            "passage with undecodable text": {"main_sentences": repr(["He.", LOST])},
        },
    ),
    "hallucination wise": Form(
        wise,
        wise_of,
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
                "prompt": "This is a  PASSAGE about man 1. He lived",
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
        web_of,
        "web",
        "webtext.jsonl",
        {
            "record without 'text'": {"text": None},
            "record whose 'text' is not text": {"text": ["a b c d"]},
            "empty web text": {"text": "<|endoftext|>"},
            "undecodable web text": {"text": f"{LOST} in the middle"},
            "web text repeated": {"text": "TEXT 1 goes on and  on here"},
        },
    ),
}
N = 9


def build(form, tmp_path, records, **keys):
    path = write(tmp_path / form.file, records, form.columns)
    if form.option == "path":
        return form.build(tmp_path, path=path, **keys).build()
    return form.build(tmp_path, **{form.option: {"path": path, **keys}}).build()


@pytest.mark.parametrize(
    ("form", "reason"),
    [(name, reason) for name, form in FORMS.items() for reason in form.faults],
)
def test_a_bad_record_is_counted_and_changes_nothing_else(tmp_path, form, reason):
    form = FORMS[form]
    good = [form.record(n) for n in range(N)]
    bad = {**form.record(N), **form.faults[reason]}
    bad = {key: value for key, value in bad.items() if value is not GONE}
    without = build(form, tmp_path, good)
    built = build(form, tmp_path, [*good, bad])
    counted = {r: n - without.dropped.get(r, 0) for r, n in built.dropped.items()}
    assert counted.pop(reason) == 1
    # The locality pair of a record of WISE is judged by itself.
    counted.pop("record without 'locality_prompt'", None)
    assert not any(counted.values())
    assert built.roles == without.roles


@pytest.mark.parametrize("name", FORMS)
def test_a_file_with_another_hash_is_refused(tmp_path, name):
    form = FORMS[name]
    with pytest.raises(DataError, match=r"its sha256 is \w+, expected 0000") as caught:
        build(form, tmp_path, [form.record(n) for n in range(N)], sha256="0" * 64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FORMS)
def test_a_file_with_undecodable_bytes_is_refused(tmp_path, name):
    form = FORMS[name]
    path = tmp_path / form.file
    write(path, [form.record(n) for n in range(N)], form.columns)
    path.write_bytes(path.read_bytes().replace(b" 1", b" \xe9", 1))
    source = {form.option: str(path)}
    with pytest.raises(DataError, match=r"not UTF-8|not readable as a table") as caught:
        form.build(tmp_path, **source).build()
    assert "\n" not in str(caught.value)


def test_a_repeated_id_of_a_table_is_refused(tmp_path):
    records = [term_case(n) for n in range(N)]
    records[8]["case"] = "c1"
    with pytest.raises(DataError, match=r"row 9 has the id 'c1' of an earlier row"):
        build(FORMS["table"], tmp_path, records)


def test_names_with_undecodable_characters_are_refused(tmp_path):
    form = FORMS["hallucination hub"]
    path = write(tmp_path / form.file, [hub_passage(0)])
    odd = tmp_path / "odd.txt"
    odd.write_text(f"ada {LOST}\n")
    options = {"edits": path, "web": web_file(tmp_path), "concepts": str(odd)}
    with pytest.raises(DataError, match=r"odd\.txt: line 1 has undecodable characters"):
        Hallucination(HallucinationOptions(**options)).build()


def test_an_undecodable_subject_is_counted_and_the_question_kept(tmp_path):
    form = FORMS["zsre json"]
    records = [zsre_json(n) for n in range(N)]
    records[3]["subject"] = LOST
    built = build(form, tmp_path, records)
    assert built.dropped["undecodable subject"] == 1
    assert [row["subject"] for row in built.roles["edits"]].count(None) == 1


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
    built = build(FORMS["zsre json"], tmp_path, records)
    facts = [row["fact_id"] for row in built.roles["edits"] + built.roles["holdout"]]
    assert {fact: facts.count(fact) for fact in facts} == {"zsre:0": 4, "zsre:2": 2, "zsre:3": 2}
    assert len(built.roles["edits"]) == 3


def test_markup_is_taken_out_if_asked_for_and_counted(tmp_path):
    records = [term_case(n) for n in range(N)]
    records[7]["text"] = "In <i>Chimel</i>, A &amp; B sued.<br/>They won."
    options = {"term_column": "term", "train_before": 1996, "upstream_size": 2}
    path = write(tmp_path / "cases.jsonl", records)
    kept = Table(TableOptions(path=path, **options)).build()
    assert kept.roles["edits"][1]["text"] == records[7]["text"]
    plain = Table(TableOptions(path=path, strip_markup=True, **options)).build()
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
        ('one<p class="x">two</p>', "one two "),
        ("<i>a</i> <!doctype x> <?y>", "a <!doctype x> <?y>"),
    ],
)
def test_only_html_is_markup(text, plain):
    assert without_markup(text) == plain
