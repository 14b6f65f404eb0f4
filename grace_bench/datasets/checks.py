"""The guarantees of every prepared data set: splits by fact, and no leaks from the stream.

The checks run on what a builder made, whoever wrote it, before anything is written. Each yields
what is wrong, naming a row; the first fault is raised. Two texts are the same if they differ only
in case, white space or end marks (`fields.same_text`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pyarrow as pa

from grace_bench.datasets.reading.fields import Roles, Row, is_decodable, same_text
from grace_bench.errors import DataError
from grace_bench.store.schemas import EXAMPLES, REQUIRED_ROLES

STREAM = ("edits", "holdout")
APART = ("train", "upstream", "accurate")
"""Roles that share no fact and no text with the stream."""


def check_roles(name: str, roles: Roles, labels: list[str] | None = None) -> None:
    """Run all checks on the roles of the data set called `name`, each role's rows by its name.

    Raises:
        DataError: a row fails a check.
    """
    for role in REQUIRED_ROLES:
        if not roles.get(role):
            raise DataError(
                f"{name}: empty split: no rows are left for '{role}'; loosen the options that "
                "filter rows, or provide more data."
            )
    faults = chain.from_iterable(check(roles) for check in CHECKS)
    for fault in chain(faults, check_labels(roles, labels)):
        raise DataError(f"{name}: {fault}; fix the builder or its source and prepare again.")


def _rows(roles: Roles, *names: str) -> Iterator[tuple[str, Row]]:
    return ((role, row) for role in names for row in roles.get(role, []))


def _place(role: str, row: Row) -> str:
    return f"{role} row '{row.get('example_id')}'"


def check_rows(roles: Roles) -> Iterator[str]:
    """Each row has the columns of `schemas.EXAMPLES`, as strings, a label and a text.

    The label is the first of several right answers. Only rows of `train` may have an empty text:
    a language model's training text has no prompt.
    """
    for role, row in _rows(roles, *roles):
        where = _place(role, row)
        if extra := sorted(set(row) - set(EXAMPLES.names)):
            yield f"{where} has unknown columns {extra}"
        for column in EXAMPLES:
            value = row.get(column.name)
            if value is None and column.nullable:
                continue
            is_list = pa.types.is_list(column.type)
            texts = value if is_list and isinstance(value, list) else [value]
            if isinstance(value, list) != is_list or not all(isinstance(t, str) for t in texts):
                yield f"{where} has {value!r} for '{column.name}'"
            if not all(map(is_decodable, texts)):
                yield f"{where} has undecodable characters in '{column.name}'"
        if not row["label"].strip():
            yield f"{where} has an empty label"
        answers = row.get("answers")
        if answers is not None and not (
            answers[:1] == [row["label"]] and all(answer.strip() for answer in answers)
        ):
            yield (
                f"{where} has the answers {answers!r}; they must begin with its label "
                f"'{row['label']}', and none may be empty"
            )
        if role != "train" and not row["text"].strip():
            yield f"{where} has an empty text"


def check_example_ids(roles: Roles) -> Iterator[str]:
    """No example id is used twice; `upstream` may repeat a text of `train` under its own id."""
    seen: dict[str, str] = {}
    for role, row in _rows(roles, *roles):
        example = row["example_id"]
        if example in seen:
            yield f"example id '{example}' is used twice, in {seen[example]} and in {role}"
        seen[example] = role


def check_facts_apart(roles: Roles) -> Iterator[str]:
    """No fact of `edits` is in `train`, `upstream` or `accurate`."""
    edited = {row["fact_id"] for row in roles["edits"]}
    for role, row in _rows(roles, *APART):
        if row["fact_id"] in edited:
            yield (
                f"fact '{row['fact_id']}' of edits is also in {role} (row '{row['example_id']}')"
            )


def check_texts_apart(roles: Roles) -> Iterator[str]:
    """No text of `edits` or `holdout` is in `train`, `upstream` or `accurate`."""
    stream = _rows(roles, *reversed(STREAM))
    streamed = {same_text(row["text"]): _place(role, row) for role, row in stream}
    for role, row in _rows(roles, *APART):
        if (key := same_text(row["text"])) in streamed:
            yield f"the text of {streamed[key]} is also in {role} (row '{row['example_id']}')"


def check_holdout(roles: Roles) -> Iterator[str]:
    """`holdout` has other texts of the edited facts, and none that belongs to two facts."""
    facts = {row["fact_id"] for row in roles["edits"]}
    owner = {same_text(row["text"]): row for row in roles["edits"]}
    held_out: dict[str, Row] = {}
    for role, row in _rows(roles, "holdout"):
        where, key = _place(role, row), same_text(row["text"])
        if row["fact_id"] not in facts:
            yield f"{where} is about '{row['fact_id']}', which is not in edits"
        for other in (owner.get(key), held_out.get(key)):
            if other is not None and other["fact_id"] != row["fact_id"]:
                yield f"{where} has the text of another fact's row '{other['example_id']}'"
        if key in owner:
            yield f"the text of {where} is also in edits (row '{owner[key]['example_id']}')"
        held_out[key] = row


def check_one_label(roles: Roles) -> Iterator[str]:
    """No text of the stream has two labels, and neither has a fact."""
    first: dict[tuple[str, str], tuple[str, Row]] = {}
    for role, row in _rows(roles, *STREAM):
        for what, key in (("text", same_text(row["text"])), ("fact", row["fact_id"])):
            place, other = first.setdefault((what, key), (_place(role, row), row))
            if same_text(other["label"]) != same_text(row["label"]):
                yield (
                    f"{place} and {_place(role, row)} have the same {what} but different labels, "
                    f"'{other['label']}' and '{row['label']}'"
                )


def check_labels(roles: Roles, labels: list[str] | None) -> Iterator[str]:
    """Each row's label is one of the data set's classes, if it has classes."""
    for role, row in _rows(roles, *roles):
        if labels is not None and row["label"] not in labels:
            yield (
                f"{_place(role, row)} has the label '{row['label']}', which is not one of the "
                "classes"
            )


CHECKS = (
    *(check_rows, check_example_ids, check_facts_apart),
    *(check_texts_apart, check_holdout, check_one_label),
)


def count_taught(roles: Roles) -> dict[str, int]:
    """Count the rows of each role whose text and label also appear in `train`, by role.

    This is not a fault: the base model may be trained on `upstream` and `accurate`, and a training
    text without a prompt may contain a row of the stream. The manifest records it.
    """
    pairs = {(same_text(row["text"]), same_text(row["label"])) for row in roles["train"]}
    passages = "\n".join(same_text(row["label"]) for row in roles["train"] if not row["text"])
    return {
        role: sum(
            (same_text(row["text"]), same_text(row["label"])) in pairs
            or same_text(f"{row['text']} {row['label']}") in passages
            for row in roles.get(role, [])
        )
        for role in ("upstream", "edits", "holdout", "accurate")
    }
