"""`zsre`: streams of both forms; what breaks a promise is dropped and counted."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from grace_bench.datasets.base import load_role, prepare
from grace_bench.datasets.builders.zsre import Zsre, ZsreOptions
from grace_bench.datasets.sources.nq import same_question
from grace_bench.errors import ConfigError, DataError


def released(number, answer=None, rephrases=10, **changes):
    """A record of the paper's jsonl."""
    return {
        "id": f"r{number}",
        "input": f"Who made thing {number}?",
        "output": [{"answer": answer or f"Maker {number}", "provenance": []}],
        "meta": {},
        "filtered_rephrases": [f"Thing {number}, made by whom ({n})?" for n in range(rephrases)],
        "prediction": "Nobody",
        "alternatives": ["Somebody"],
        **changes,
    }


def mend(number, **changes):
    """A record of the JSON list of MEND and EasyEdit."""
    return {
        "subject": f"thing {number}",
        "src": f"Who made thing {number}?",
        "rephrase": f"By whom was thing {number} made?",
        "answers": [f"Maker {number}"],
        "pred": "Nobody",
        "alt": "Somebody",
        "loc": f"nq question: which colour has number {number}",
        "loc_ans": "red",
        "cond": "",
        **changes,
    }


def files(tmp_path, records, nq=None):
    path = tmp_path / ("zsre.jsonl" if "input" in records[0] else "zsre.json")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(records))
    upstream = tmp_path / "nq_train.json"
    if nq is None:
        nq = {f"which is number {n}": f"n{n}" for n in range(40)}
    upstream.write_text(json.dumps({"questions": list(nq), "answers": list(nq.values())}))
    return {"edits": str(path), "upstream": str(upstream)}


def build(tmp_path, records, nq=None, **options):
    return Zsre(ZsreOptions(**{**files(tmp_path, records, nq), **options})).build()


def prepared(tmp_path, **options):
    folder = tmp_path / "out"
    manifest = prepare(Zsre(ZsreOptions(**options)), folder, task="question_answering", config={})
    return manifest, {role: load_role(folder, role) for role in manifest["roles"]}


def texts(rows):
    return [row["text"] for row in rows]


def test_released_stream_takes_the_released_codes_random_halves(tmp_path):
    records = [released(n, rephrases=10 + n % 2) for n in range(12)]
    records += [released(n, rephrases=9) for n in range(12, 20)]
    manifest, roles = prepared(
        tmp_path, **files(tmp_path, records), stream="released", upstream_questions=10
    )
    pool = []
    for record in records:
        pool.append(record["input"])
        if len(record["filtered_rephrases"]) >= 10:
            pool += record["filtered_rephrases"][:10]
    np.random.seed(42)
    order = np.random.choice(len(pool), len(pool), replace=False)
    half = len(pool) // 2
    assert texts(roles["edits"]) == [pool[i] for i in order[:half]]
    expected = [pool[i] for i in order[half:]]
    missing = manifest["dropped"]["held-out question of a fact that is not edited"]
    assert len(roles["holdout"]) == len(expected) - missing
    assert set(texts(roles["holdout"])) <= set(expected)
    assert roles["edits"][0]["label"].startswith("Maker ")
    assert missing > 0
    assert texts(roles["upstream"]) == [f"which is number {n}" for n in range(10)]
    assert manifest["sources"][0]["name"] == "zsre.jsonl"


def test_released_stream_stops_at_the_pool(tmp_path):
    built = build(tmp_path, [released(n) for n in range(10)], stream="released", pool=44)
    assert len(built.roles["edits"]) == 22
    assert built.dropped["question beyond the pool"] == 66


def test_phrasings_of_a_fact_are_edited_and_its_others_held_out(tmp_path):
    records = [released(n) for n in range(8)] + [released(8, rephrases=3)]
    manifest, roles = prepared(
        tmp_path, **files(tmp_path, records), edit_facts=6, edit_phrasings=4, stream_window=3
    )
    edited = Counter(row["fact_id"] for row in roles["edits"])
    held_out = Counter(row["fact_id"] for row in roles["holdout"])
    assert set(edited.values()) == {4}
    assert held_out == dict.fromkeys(edited, 7)
    window = [row["fact_id"] for row in roles["edits"][:12]]
    assert window == window[:3] * 4
    assert manifest["dropped"] == {"fact not requested": 2, "fact with too few phrasings": 1}
    assert manifest["roles"]["train"]["rows"] == 40


def test_the_form_of_mend_has_subjects_and_one_rephrasing(tmp_path):
    records = [mend(n, answers=[f"Maker {n}", "Another"]) for n in range(5)]
    _, roles = prepared(tmp_path, **files(tmp_path, records), edit_phrasings=1)
    for edit in roles["edits"]:
        [other] = [row for row in roles["holdout"] if row["fact_id"] == edit["fact_id"]]
        assert {edit["subject"], other["subject"]} == {edit["subject"]}
        assert edit["subject"] in edit["text"]
        assert edit["label"] == other["label"]
        assert edit["label"].startswith("Maker")


def test_the_same_bytes_twice_and_others_by_another_seed(tmp_path):
    options = files(tmp_path, [released(n) for n in range(9)])
    first = prepared(tmp_path, **options)[0]
    assert prepared(tmp_path, **options)[0] == first
    assert prepared(tmp_path, **options, seed=1)[0]["data_hash"] != first["data_hash"]


def test_records_that_share_a_question_and_its_answer_are_one_fact(tmp_path):
    records = [mend(n) for n in range(3)]
    records.append(mend(3, rephrase="who made thing 0", answers=["maker 0"]))
    built = build(tmp_path, records, edit_phrasings=1)
    assert built.dropped["question repeated"] == 1
    rows = built.roles["edits"] + built.roles["holdout"]
    assert len([row for row in rows if row["fact_id"] == "zsre:0"]) == 3
    assert {row["fact_id"] for row in rows} == {"zsre:0", "zsre:1", "zsre:2"}


def test_a_question_with_two_answers_is_dropped_wherever_it_stands(tmp_path):
    records = [released(n) for n in range(4)]
    records[1]["filtered_rephrases"][0] = records[0]["input"]
    for stream in ("released", "phrasings"):
        built = build(tmp_path, records, stream=stream)
        assert built.dropped["question with different answers"] == 2
        rows = built.roles["edits"] + built.roles["holdout"]
        assert records[0]["input"] not in texts(rows)


def test_unfit_records_are_counted(tmp_path):
    records = [
        *(released(n) for n in range(4)),
        released(4, output=[{"answer": " "}]),
        released(5, output=[]),
        released(6, input=""),
        released(7, input="Who made \ufffd?"),
        released(8, id="r0"),
        {key: value for key, value in released(9).items() if key != "output"},
        released(10, output=[{"provenance": []}, {"answer": "Maker"}, {"answer": "Second"}]),
    ]
    records[0]["filtered_rephrases"][3] = "\ud800"
    built = build(tmp_path, records)
    assert built.dropped == {
        "empty zsRE answer": 2,
        "empty zsRE question": 1,
        "undecodable zsRE question": 1,
        "zsRE record with the id of an earlier one": 1,
        "record without 'output'": 1,
        "rephrasing empty or undecodable": 1,
    }
    assert {row["fact_id"]: row["answers"] for row in built.roles["edits"]} == {
        **{f"zsre:r{n}": None for n in (0, 1, 2, 3)},
        "zsre:r10": ["Maker", "Second"],
    }


def test_nq_questions_of_the_stream_and_unfit_ones_are_dropped(tmp_path):
    nq = {
        "who made thing 2": "M",
        "which is number 1": "1",
        "Which is number 1?": "2",
        "which is empty": "",
        "which is last": ["x", "y"],
    }
    built = build(tmp_path, [released(n) for n in range(4)], nq, edit_phrasings=5)
    assert texts(built.roles["upstream"]) == ["which is number 1", "which is last"]
    assert [row["label"] for row in built.roles["train"]] == ["1", "x"]
    assert [row["answers"] for row in built.roles["upstream"]] == [None, ["x", "y"]]
    assert built.dropped == {
        "NQ question repeated with another answer": 1,
        "NQ question that is also a zsRE question": 1,
        "empty NQ answer": 1,
    }


def test_upstream_taught_or_not_first_or_random(tmp_path):
    records = [released(n) for n in range(3)]
    taught = build(tmp_path, records, upstream_questions=10, train_questions=15)
    assert set(texts(taught.roles["upstream"])) <= set(texts(taught.roles["train"]))
    assert taught.dropped["NQ question not requested"] == 25
    apart = build(tmp_path, records, upstream_questions=10, upstream_taught=False)
    assert not set(texts(apart.roles["upstream"])) & set(texts(apart.roles["train"]))
    chosen = build(tmp_path, records, upstream_questions=10, upstream_sample="random")
    assert texts(chosen.roles["upstream"]) != texts(taught.roles["upstream"])


def test_upstream_of_nq_open_lines_and_of_mends_locality(tmp_path):
    options = files(tmp_path, [mend(n) for n in range(4)])
    lines = tmp_path / "nq.jsonl"
    lines.write_text('{"question": "who", "answer": ["me", "you"]}\n')
    rows = Zsre(ZsreOptions(**{**options, "upstream": str(lines)}, edit_phrasings=1)).build()
    assert [(row["text"], row["label"]) for row in rows.roles["upstream"]] == [("who", "me")]
    own = Zsre(ZsreOptions(**{**options, "upstream": options["edits"]}, edit_phrasings=1)).build()
    assert texts(own.roles["upstream"])[0] == "which colour has number 0"


def test_refusals_are_one_sentence(tmp_path):
    good = files(tmp_path, [released(n) for n in range(3)])
    other = tmp_path / "other.json"
    other.write_text('[{"inputs": "a", "output": "b"}]')
    for changes, sentence in (
        ({"edits": "missing.jsonl"}, "missing.jsonl: no such file; put the zsRE questions"),
        ({"upstream": "missing.json"}, "missing.json: no such file; put the NQ questions"),
        ({"edits": str(other)}, "need the fields input, output, filtered_rephrases; or src, answ"),
        ({"edits": {"path": good["edits"], "sha256": "0" * 64}}, "expected 0000"),
        ({"edit_facts": 4}, "edit_facts=4, but only 3 facts have more than 5 phrasings"),
    ):
        with pytest.raises(DataError) as caught:
            Zsre(ZsreOptions(**{**good, **changes})).build()
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="makes data for question_answering"):
        prepare(Zsre(ZsreOptions(**good)), tmp_path, task="classification", config={})


def test_nothing_left_is_an_empty_split(tmp_path):
    options = files(tmp_path, [released(n, rephrases=2) for n in range(3)])
    with pytest.raises(DataError, match="zsre: empty split: no rows are left for 'edits'"):
        prepared(tmp_path, **options)


@pytest.mark.parametrize("stream", ["phrasings", "released"])
def test_real_records(shared, tmp_path, stream):
    _, roles = prepared(
        tmp_path,
        edits=str(shared / "data/zsre/zsre_3k.json"),
        upstream=str(shared / "data/nq/NQ-open.dev.jsonl"),
        stream=stream,
        rephrasings=1,
        edit_phrasings=1,
    )
    counts = {role: len(rows) for role, rows in roles.items()}
    assert counts["upstream"] == 1000
    assert counts["train"] > 3500
    assert counts["edits"] > (2500 if stream == "phrasings" else 2900)
    assert counts["holdout"] > (3300 if stream == "phrasings" else 1400)
    owner = {}  # what one record asks is another's held-out phrasing: they are one fact
    for row in roles["edits"] + roles["holdout"]:
        named = (row["subject"].casefold(), row["label"].casefold())
        assert owner.setdefault(named, row["fact_id"]) == row["fact_id"]
    streamed = {same_question(row["text"]) for row in roles["edits"] + roles["holdout"]}
    assert len(streamed) == counts["edits"] + counts["holdout"]
    assert not streamed & {same_question(text) for text in texts(roles["train"])}
    assert any(row["answers"] for row in roles["edits"])
    assert sum(row["answers"] is not None for row in roles["upstream"]) > 300
