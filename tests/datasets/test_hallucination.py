"""`hallucination`: prompts and targets as the paper builds them; bad passages are counted."""

from __future__ import annotations

import json

import pytest
from dataset_records import (
    NAMES,
    built,
    older_passage,
    passage,
    prepared,
    refusal,
    web,
    wise,
    write,
    write_names,
)

from grace_bench.datasets.reading.sentences import split_sentences
from grace_bench.datasets.sources.webtext import split_at

WEB = [web(n)["text"] for n in range(9)]


def files(tmp_path, records, names=NAMES, web=WEB):
    return {
        "edits": write(tmp_path / "passages.json", records),
        "concepts": write_names(tmp_path / "concepts.txt", names),
        "web": write(tmp_path / "web.jsonl", [{"text": text} for text in web]),
    }


def build(tmp_path, records, web=WEB, names=NAMES, **options):
    return built("hallucination", **{**files(tmp_path, records, names, web), **options})


def test_passages_become_rows_as_the_paper_builds_them(tmp_path):
    records = [passage(n) for n in range(3)]
    manifest, roles = prepared(
        tmp_path,
        "hallucination",
        **files(tmp_path, records),
        upstream_texts=4,
        train_texts=2,
        web_prompt_words=2,
    )
    header = "This is a Wikipedia passage about carl linnaeus , botanist."
    assert [row for row in roles["edits"] if row["fact_id"].startswith("wikibio:101/")] == [
        {
            "example_id": "edits/101/1",
            "fact_id": "wikibio:101/1",
            "text": f"{header} Carl was known.",
            "label": "Carl lived in Paris.",
            "subject": "carl linnaeus , botanist",
            "relation": None,
            "answers": None,
        },
        {
            "example_id": "edits/101/3",
            "fact_id": "wikibio:101/3",
            "text": f"{header} Carl was known. Carl lived in Rome. That is so.",
            "label": "It ended well.",
            "subject": "carl linnaeus , botanist",
            "relation": None,
            "answers": None,
        },
    ]
    accurate = [(row["text"], row["label"]) for row in roles["accurate"][2:4]]
    assert accurate == [
        (header, "Carl was known."),
        (f"{header} Carl was known. Carl lived in Rome.", "That is so."),
    ]
    assert [len(roles[role]) for role in ("edits", "accurate", "holdout", "upstream", "train")] == [
        *(6, 6, 0, 4, 5)
    ]
    assert roles["train"][1]["label"] == f"{header} {records[1]['gpt3_text']}"
    assert roles["train"][3]["label"].startswith("Text 4 goes on\n\nand")
    assert (roles["upstream"][0]["text"], roles["upstream"][0]["label"]) == (
        "Text 0",
        "goes on\n\nand on and on here.",
    )
    assert [source["name"] for source in manifest.sources] == [
        *("passages.json", "concepts.txt", "web.jsonl")
    ]
    assert manifest.dropped == {"web text not requested": 3}


def test_a_web_text_ends_where_it_says_so(tmp_path):
    web = [f"<|endoftext|>Text {n} goes on here.<|endoftext|>\nMore of {n}." for n in range(3)]
    made = build(
        tmp_path, [passage(n) for n in range(3)], web, upstream_texts=3, web_prompt_words=2
    )
    assert [f"{row['text']} {row['label']}" for row in made.roles["upstream"]] == [
        f"Text {n} goes on here." for n in range(3)
    ]
    assert made.dropped["web text after the first of its record"] == 3


def test_only_the_first_passages_can_be_asked_for(tmp_path):
    records = [passage(0, gpt3_sentences="not a list"), passage(1), passage(2)]
    made = build(tmp_path, records, passages=1)
    assert {row["subject"] for row in made.roles["edits"]} == {NAMES[1]}
    assert {row["subject"] for row in made.roles["accurate"]} == {NAMES[1]}


def test_only_the_first_sentences_of_a_passage_can_be_asked_for(tmp_path):
    whole, short = (build(tmp_path, [passage(0)], sentences=n) for n in (None, 2))
    kept = [row["text"].count(".") for row in whole.roles["edits"] + whole.roles["accurate"]]
    assert sorted(kept) == [1, 2, 3, 4]  # the header, and the sentences before
    assert short.roles["edits"] == whole.roles["edits"][:1]
    assert short.roles["accurate"] == whole.roles["accurate"][:1]
    assert short.roles["train"] == whole.roles["train"]


def test_the_hubs_copy_and_the_older_form_give_the_same_rows(tmp_path):
    import datasets

    records = [passage(n) for n in range(3)]
    hub = build(tmp_path, records).roles
    copy = tmp_path / "copy"
    datasets.DatasetDict({"evaluation": datasets.Dataset.from_list(records)}).save_to_disk(copy)
    saved = build(tmp_path, records, edits={"path": str(copy), "split": "evaluation"}).roles
    older = [older_passage(n, as_texts=True) for n in range(3)]
    assert hub == saved == build(tmp_path, older).roles


def test_training_as_released_is_on_every_prompt_and_on_the_first_web_texts(tmp_path):
    made = build(
        tmp_path,
        [passage(n) for n in range(3)],
        train="prompts",
        train_texts_apart=False,
        train_texts=1,
        upstream_texts=2,
    )
    labels = [row["label"] for row in made.roles["train"]]
    prompts = [row["text"] for row in made.roles["edits"] + made.roles["accurate"]]
    assert sorted(labels[:12]) == sorted(prompts)
    assert not any("It ended in 1900." in label for label in labels)
    assert labels[12].startswith("Text 0 ")


def test_names_stay_in_step_when_a_passage_is_dropped(tmp_path):
    bad = passage(1, gpt3_sentences="__import__('os').getcwd()")
    made = build(tmp_path, [passage(0), bad, passage(2)])
    assert made.dropped == {"passage whose sentences or annotations are not a list": 1}
    assert {row["subject"] for row in made.roles["edits"]} == {NAMES[0], NAMES[2]}


def test_two_passages_of_one_name_are_one(tmp_path):
    made = build(tmp_path, [passage(0), passage(3)], names=[NAMES[0], NAMES[0]])
    assert made.dropped == {"passage with the name of an earlier one": 1}


def test_short_web_texts_are_dropped_and_long_ones_cut(tmp_path):
    texts = ["one two three", "fit to be kept here", "a very long text that goes on and on"]
    made = build(tmp_path, [passage(0)], texts, web_words=6, upstream_texts=2)
    assert made.dropped == {
        "web text of fewer than 4 words": 1,
        "end of a web text longer than web_words": 1,
    }
    assert made.roles["upstream"][1]["label"] == "long text that goes"


def test_the_editing_form_of_wise(tmp_path):
    records = [wise(n) for n in range(4)]
    records.append(wise(4, prompt=f"{records[0]['prompt']} He wrote.", subject="man 0"))
    options = files(tmp_path, records)
    manifest, roles = prepared(tmp_path, "hallucination", edits=options["edits"])
    assert [len(roles[role]) for role in ("edits", "upstream", "train", "accurate")] == [5, 5, 4, 0]
    assert roles["edits"][1]["label"] == "He died in 1901."
    assert roles["edits"][1]["subject"] == "man 1"
    assert roles["upstream"][2]["text"] == "The weather of day 2 was"
    assert {row["text"] for row in roles["train"]} == {""}
    assert manifest.dropped == {}
    _, roles = prepared(
        tmp_path, "hallucination", edits=options["edits"], train="prompts", web=options["web"]
    )
    assert len(roles["upstream"]) == 9
    assert len([row for row in roles["train"] if row["fact_id"].startswith("passage:wise-")]) == 5


def test_unfit_locality_pairs_of_wise_are_counted(tmp_path):
    records = [
        wise(0),
        wise(1, locality_prompt=wise(0)["locality_prompt"]),
        wise(2, locality_ground_truth=None),
        wise(3, locality_prompt=" "),
    ]
    made = built("hallucination", edits=files(tmp_path, records)["edits"])
    assert len(made.roles["edits"]) == 4
    assert made.dropped == {
        "locality prompt repeated": 1,
        "record without 'locality_ground_truth'": 1,
        "empty locality prompt": 1,
    }


def test_refusals_are_one_sentence(tmp_path):
    good = files(tmp_path, [passage(n) for n in range(3)])
    few = write_names(tmp_path / "few.txt", NAMES[:1])
    other = write_names(tmp_path / "order.txt", ["aaaa", "bbbb", "cccc"])
    for changes, sentence in (
        ({"edits": "none.json"}, "none.json: no such file; put the passages (WikiBio"),
        ({"concepts": None}, "passages need the option 'concepts'; put the passages' names"),
        ({"concepts": "none.txt"}, "none.txt: no such file; put the passages' names, one per line"),
        ({"concepts": few}, "has 1 names for 3 passages"),
        ({"concepts": other}, "only 0 of 3 passages mention their name"),
        ({"concepts": good["web"]}, "must be a .txt file"),
        ({"web": None}, "passages need the option 'web'"),
        ({"web": "none.jsonl"}, "none.jsonl: no such file; put the web texts"),
        ({"web": good["edits"]}, "records need the fields text"),
    ):
        assert sentence in refusal("hallucination", **{**good, **changes})


def test_a_text_is_split_at_its_words_and_keeps_its_lines():
    assert split_at("one two\n\nthree four  five six", 2) == ("one two", "three four  five six")
    assert split_at("one two three four", 9) == ("one", "two three four")


SENTENCES = [
    ["He met Dr. J. J. Reid.", "It rained."],
    ["He was born in St. Louis, Mo.", "He won the Cup in 1902.", "Then he left!"],
    ["She moved to the U.S. Senate in 1980.", "It was No. 5 on the list."],
    ["He left the University of Missouri-St. Louis in 1984.", "He taught."],
    ["They live in the U.S.", "He died there."],
    ['"Is it?"', "(Perhaps.)", "3 of them were e.g. red."],
    ["John Smith Jr. was a player.", "He wrote for Hearst et al."],
    ["John Smith Jr. (born 1945) is a writer (see p. 434).", "He lives."],
]


@pytest.mark.parametrize("sentences", SENTENCES, ids=[group[0] for group in SENTENCES])
def test_sentences_are_split_by_rules(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


def test_an_empty_line_ends_a_sentence_and_nothing_has_none():
    assert split_sentences("A heading\n\nA text. ") == ["A heading", "A text."]
    assert split_sentences(" \n ") == []


def test_real_sentences_are_split_where_gpt3s_annotators_split_them(shared):
    path = shared / "data/hallucination/wikibio_gpt3_119.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    found = wanted = same = 0
    for record in records:
        theirs = {sentence.strip() for sentence in record["main_sentences"]}
        ours = split_sentences(record["main_passage"])
        wanted += len(theirs)
        found += len(ours)
        same += len(theirs & set(ours))
    assert same / wanted > 0.97
    assert same / found > 0.97


def test_real_passages(shared, tmp_path):
    folder = shared / "data/hallucination"
    manifest, roles = prepared(
        tmp_path,
        "hallucination",
        edits=str(folder / "wikibio_gpt3_119.json"),
        concepts=str(folder / "wiki_bio_concepts.txt"),
        web=str(shared / "data/webtext/val100.jsonl"),
    )
    counts = {role: len(rows) for role, rows in roles.items()}
    assert counts["edits"] == 705
    assert counts["accurate"] == 254
    assert counts["upstream"] == 1000
    assert counts["train"] == 119 + 200
    assert roles["edits"][0]["subject"] == "john russell reynolds"
    assert not [reason for reason in manifest.dropped if "passage" in reason]


def test_real_pairs_of_wise(shared, tmp_path):
    manifest, roles = prepared(
        tmp_path, "hallucination", edits=str(shared / "data/hallucination/hallucination-train.json")
    )
    assert len(roles["edits"]) == 306
    assert len(roles["upstream"]) == 301
    assert manifest.dropped == {"empty locality text": 5}
