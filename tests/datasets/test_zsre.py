"""`zsre`: streams of both forms; what breaks a promise is dropped and counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from dataset_records import built, prepared, refusal, texts, write, zsre_json, zsre_jsonl

from grace_bench.datasets.sources.nq import same_question
from grace_bench.errors import DataError

NQ = {f"which is number {n}": f"n{n}" for n in range(40)}


def files(tmp_path, records, nq=NQ):
    name = "zsre.jsonl" if "input" in records[0] else "zsre.json"
    asked = [{"questions": question, "answers": answer} for question, answer in nq.items()]
    return {
        "edits": write(tmp_path / name, records),
        "upstream": write(tmp_path / "nq_train.json", asked, columns=True),
    }


def build(tmp_path, records, nq=NQ, **options):
    return built("zsre", **{**files(tmp_path, records, nq), **options})


def test_released_stream_takes_the_released_codes_random_halves(tmp_path):
    records = [zsre_jsonl(n, rephrases=10 + n % 2) for n in range(12)]
    records += [zsre_jsonl(n, rephrases=9) for n in range(12, 20)]
    manifest, roles = prepared(
        tmp_path, "zsre", **files(tmp_path, records), stream="released", upstream_questions=10
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
    missing = manifest.dropped["held-out question of a fact that is not edited"]
    assert len(roles["holdout"]) == len(expected) - missing
    assert set(texts(roles["holdout"])) <= set(expected)
    assert roles["edits"][0]["label"].startswith("Maker ")
    assert missing > 0
    assert texts(roles["upstream"]) == [f"which is number {n}" for n in range(10)]
    assert manifest.sources[0]["name"] == "zsre.jsonl"


def test_released_stream_stops_at_the_pool(tmp_path):
    made = build(tmp_path, [zsre_jsonl(n) for n in range(10)], stream="released", pool=44)
    assert len(made.roles["edits"]) == 22
    assert made.dropped["question beyond the pool"] == 66


def test_phrasings_of_a_fact_are_edited_and_its_others_held_out(tmp_path):
    records = [zsre_jsonl(n) for n in range(8)] + [zsre_jsonl(8, rephrases=3)]
    manifest, roles = prepared(
        tmp_path,
        "zsre",
        **files(tmp_path, records),
        edit_facts=6,
        edit_phrasings=4,
        stream_window=3,
    )
    edited = Counter(row["fact_id"] for row in roles["edits"])
    held_out = Counter(row["fact_id"] for row in roles["holdout"])
    assert set(edited.values()) == {4}
    assert held_out == dict.fromkeys(edited, 7)
    window = [row["fact_id"] for row in roles["edits"][:12]]
    assert window == window[:3] * 4
    assert manifest.dropped == {"fact not requested": 2, "fact with too few phrasings": 1}
    assert manifest.roles["train"].rows == 40


def test_the_form_of_mend_has_subjects_and_one_rephrasing(tmp_path):
    records = [zsre_json(n, answers=[f"Maker {n}", "Another"]) for n in range(5)]
    _, roles = prepared(tmp_path, "zsre", **files(tmp_path, records), edit_phrasings=1)
    for edit in roles["edits"]:
        [other] = [row for row in roles["holdout"] if row["fact_id"] == edit["fact_id"]]
        assert {edit["subject"], other["subject"]} == {edit["subject"]}
        assert edit["subject"] in edit["text"]
        assert edit["label"] == other["label"]
        assert edit["label"].startswith("Maker")


def test_the_same_bytes_twice_and_others_by_another_seed(tmp_path):
    options = files(tmp_path, [zsre_jsonl(n) for n in range(9)])
    first = prepared(tmp_path, "zsre", **options)[0]
    assert prepared(tmp_path, "zsre", **options)[0] == first
    assert prepared(tmp_path, "zsre", **options, seed=1)[0].data_hash != first.data_hash


def test_records_that_share_a_question_and_its_answer_are_one_fact(tmp_path):
    records = [zsre_json(n) for n in range(3)]
    records.append(zsre_json(3, rephrase="who made thing 0", answers=["maker 0"]))
    made = build(tmp_path, records, edit_phrasings=1)
    assert made.dropped["question repeated"] == 1
    rows = made.roles["edits"] + made.roles["holdout"]
    assert len([row for row in rows if row["fact_id"] == "zsre:0"]) == 3
    assert {row["fact_id"] for row in rows} == {"zsre:0", "zsre:1", "zsre:2"}


def test_a_question_with_two_answers_is_dropped_wherever_it_stands(tmp_path):
    records = [zsre_jsonl(n) for n in range(4)]
    records[1]["filtered_rephrases"][0] = records[0]["input"]
    for stream in ("released", "phrasings"):
        made = build(tmp_path, records, stream=stream)
        assert made.dropped["question with different answers"] == 2
        rows = made.roles["edits"] + made.roles["holdout"]
        assert records[0]["input"] not in texts(rows)


def test_all_answers_are_kept_and_lost_rephrasings_counted(tmp_path):
    records = [zsre_jsonl(n) for n in range(2)]
    answers = [{"provenance": []}, {"answer": "Maker"}, {"answer": "Second"}]
    records.append(zsre_jsonl(2, output=answers))
    records[0]["filtered_rephrases"][3] = "\ud800"
    made = build(tmp_path, records)
    assert made.dropped == {"rephrasing empty or undecodable": 1}
    assert {row["fact_id"]: row["answers"] for row in made.roles["edits"]} == {
        "zsre:r0": None,
        "zsre:r1": None,
        "zsre:r2": ["Maker", "Second"],
    }


def test_nq_questions_of_the_stream_and_unfit_ones_are_dropped(tmp_path):
    nq = {
        "who made thing 2": "M",
        "which is number 1": "1",
        "Which is number 1?": "2",
        "which is empty": "",
        "which is last": ["x", "y"],
    }
    made = build(tmp_path, [zsre_jsonl(n) for n in range(4)], nq, edit_phrasings=5)
    assert texts(made.roles["upstream"]) == ["which is number 1", "which is last"]
    assert [row["label"] for row in made.roles["train"]] == ["1", "x"]
    assert [row["answers"] for row in made.roles["upstream"]] == [None, ["x", "y"]]
    assert made.dropped == {
        "NQ question repeated with another answer": 1,
        "NQ question that is also a zsRE question": 1,
        "empty NQ answer": 1,
    }


def test_upstream_taught_or_not_first_or_random(tmp_path):
    records = [zsre_jsonl(n) for n in range(3)]
    taught = build(tmp_path, records, upstream_questions=10, train_questions=15)
    assert set(texts(taught.roles["upstream"])) <= set(texts(taught.roles["train"]))
    assert taught.dropped["NQ question not requested"] == 25
    apart = build(tmp_path, records, upstream_questions=10, upstream_taught=False)
    assert not set(texts(apart.roles["upstream"])) & set(texts(apart.roles["train"]))
    chosen = build(tmp_path, records, upstream_questions=10, upstream_sample="random")
    assert texts(chosen.roles["upstream"]) != texts(taught.roles["upstream"])


def test_upstream_of_nq_open_lines_and_of_mends_locality(tmp_path):
    options = files(tmp_path, [zsre_json(n) for n in range(4)])
    lines = write(tmp_path / "nq.jsonl", [{"question": "who", "answer": ["me", "you"]}])
    rows = built("zsre", **{**options, "upstream": lines}, edit_phrasings=1).roles["upstream"]
    assert [(row["text"], row["label"]) for row in rows] == [("who", "me")]
    own = built("zsre", **{**options, "upstream": options["edits"]}, edit_phrasings=1)
    assert texts(own.roles["upstream"])[0] == "which is 0"


def test_refusals_are_one_sentence(tmp_path):
    good = files(tmp_path, [zsre_jsonl(n) for n in range(3)])
    other = write(tmp_path / "other.json", [{"inputs": "a", "output": "b"}])
    for changes, sentence in (
        ({"edits": "missing.jsonl"}, "missing.jsonl: no such file; put the zsRE questions"),
        ({"upstream": "missing.json"}, "missing.json: no such file; put the NQ questions"),
        ({"edits": other}, "need the fields input, output, filtered_rephrases; or src, answ"),
        ({"edit_facts": 4}, "edit_facts=4, but only 3 facts have more than 5 phrasings"),
    ):
        assert sentence in refusal("zsre", **{**good, **changes})


def test_nothing_left_is_an_empty_split(tmp_path):
    options = files(tmp_path, [zsre_jsonl(n, rephrases=2) for n in range(3)])
    with pytest.raises(DataError, match="zsre: empty split: no rows are left for 'edits'"):
        prepared(tmp_path, "zsre", **options)


@pytest.mark.parametrize("stream", ["phrasings", "released"])
def test_real_records(shared, tmp_path, stream):
    _, roles = prepared(
        tmp_path,
        "zsre",
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
