"""The promises every prepared data set keeps (design.md, decision 5: splits by fact).

Each check raises `DataError` with one sentence that names an offending row. They run on what a
builder made, whoever wrote the builder, before anything is written. Two texts are the same if they
differ only in case, white space or end marks (`fields.same_text`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from grace_bench.datasets.reading.fields import is_decodable, same_text
from grace_bench.errors import DataError
from grace_bench.store.schemas import EXAMPLES, REQUIRED_ROLES

Row = Mapping[str, Any]
Roles = Mapping[str, list[dict[str, Any]]]

_MEND = "mend the builder or its source and prepare again."


def check_roles(name: str, roles: Roles, labels: list[str] | None = None) -> None:
    """Run all checks on the roles of the data set called `name`.

    Raises:
        DataError: a row breaks a promise.
    """
    check_not_empty(name, roles)
    check_rows(name, roles)
    check_example_ids(name, roles)
    check_facts_apart(name, roles)
    check_texts_apart(name, roles)
    check_holdout(name, roles)
    check_one_label(name, roles)
    if labels is not None:
        check_labels_known(name, roles, labels)


def check_not_empty(name: str, roles: Roles) -> None:
    """Each required role has rows."""
    for role in REQUIRED_ROLES:
        if not roles.get(role):
            raise DataError(
                f"{name}: empty split: no rows are left for '{role}'; loosen the options that "
                "filter rows, or give it more data."
            )


def check_rows(name: str, roles: Roles) -> None:
    """Each row has the columns of `schemas.EXAMPLES`, as strings, and a label and a text.

    Where it has several right answers, the label is the first of them.
    Only rows of `train` may have an empty text: a language model's training text has no prompt.
    """
    for role, rows in roles.items():
        for row in rows:
            where = f"{name}: {role} row '{row.get('example_id')}'"
            if extra := sorted(set(row) - set(EXAMPLES.names)):
                raise DataError(f"{where} has unknown columns {extra}; {_MEND}")
            for column in EXAMPLES:
                value = row.get(column.name)
                if value is None and column.nullable:
                    continue
                is_list = pa.types.is_list(column.type)
                texts = value if is_list and isinstance(value, list) else [value]
                if isinstance(value, list) != is_list or not all(isinstance(t, str) for t in texts):
                    raise DataError(f"{where} has {value!r} for '{column.name}'; {_MEND}")
                if not all(map(is_decodable, texts)):
                    raise DataError(
                        f"{where} has undecodable characters in '{column.name}'; {_MEND}"
                    )
            if not row["label"].strip():
                raise DataError(f"{where} has an empty label; {_MEND}")
            answers = row.get("answers")
            if answers is not None and not (
                answers[:1] == [row["label"]] and all(answer.strip() for answer in answers)
            ):
                raise DataError(
                    f"{where} has the answers {answers!r}, which must begin with its label "
                    f"'{row['label']}' and have no empty one; {_MEND}"
                )
            if role != "train" and not row["text"].strip():
                raise DataError(f"{where} has an empty text; {_MEND}")


def check_example_ids(name: str, roles: Roles) -> None:
    """No example id is used twice, in one role or in two.

    `upstream` may repeat a text of `train`, under an id of its own.
    """
    seen: dict[str, str] = {}
    for role, rows in roles.items():
        for row in rows:
            if row["example_id"] in seen:
                raise DataError(
                    f"{name}: example id '{row['example_id']}' is used twice, in "
                    f"{seen[row['example_id']]} and in {role}; {_MEND}"
                )
            seen[row["example_id"]] = role


def check_facts_apart(name: str, roles: Roles) -> None:
    """No fact of `edits` is in `train`, `upstream` or `accurate`."""
    edited = {row["fact_id"] for row in roles["edits"]}
    for role in ("train", "upstream", "accurate"):
        for row in roles.get(role, []):
            if row["fact_id"] in edited:
                raise DataError(
                    f"{name}: fact '{row['fact_id']}' of edits is also in {role} "
                    f"(row '{row['example_id']}'); {_MEND}"
                )


def check_texts_apart(name: str, roles: Roles) -> None:
    """No text of `edits` or `holdout` is in `train`, `upstream` or `accurate`."""
    streamed = {
        same_text(row["text"]): f"{role} row '{row['example_id']}'"
        for role in ("holdout", "edits")
        for row in roles.get(role, [])
    }
    for role in ("train", "upstream", "accurate"):
        for row in roles.get(role, []):
            if (key := same_text(row["text"])) in streamed:
                raise DataError(
                    f"{name}: the text of {streamed[key]} is also in {role} "
                    f"(row '{row['example_id']}'); {_MEND}"
                )


def check_holdout(name: str, roles: Roles) -> None:
    """`holdout` has other texts of the edited facts, and none that belongs to two facts."""
    facts = {row["fact_id"] for row in roles["edits"]}
    owner = {same_text(row["text"]): row for row in roles["edits"]}
    held_out: dict[str, Row] = {}
    for row in roles.get("holdout", []):
        if row["fact_id"] not in facts:
            raise DataError(
                f"{name}: holdout row '{row['example_id']}' is about '{row['fact_id']}', which "
                f"edits lacks; {_MEND}"
            )
        key = same_text(row["text"])
        for other in (owner.get(key), held_out.get(key)):
            if other is not None and other["fact_id"] != row["fact_id"]:
                raise DataError(
                    f"{name}: holdout row '{row['example_id']}' has the text of another fact's row "
                    f"'{other['example_id']}'; {_MEND}"
                )
        if key in owner:
            raise DataError(
                f"{name}: the text of holdout row '{row['example_id']}' is also in edits "
                f"(row '{owner[key]['example_id']}'); {_MEND}"
            )
        held_out[key] = row


def check_one_label(name: str, roles: Roles) -> None:
    """No text of `edits` has two labels, and no fact of `edits` and `holdout`."""
    texts: dict[str, Row] = {}
    facts: dict[str, Row] = {}
    for role in ("edits", "holdout"):
        for row in roles.get(role, []):
            here = f"{role} row '{row['example_id']}'"
            same = ((texts, same_text(row["text"]), "text"), (facts, row["fact_id"], "fact"))
            for first, key, what in same:
                other = first.setdefault(key, row)
                if same_text(other["label"]) != same_text(row["label"]):
                    raise DataError(
                        f"{name}: edits row '{other['example_id']}' and {here} have one {what} "
                        f"and two labels, '{other['label']}' and '{row['label']}'; {_MEND}"
                    )


def count_taught(roles: Roles) -> dict[str, int]:
    """Count the rows of each role whose prompt and label are also read in `train`, role by role.

    Not a fault: `upstream` and `accurate` may be what the base model was fitted on, and a text of
    `train` without a prompt may hold them anywhere. It should be known all the same.
    """
    pairs = {(same_text(row["text"]), same_text(row["label"])) for row in roles["train"]}
    passages = "\n".join(same_text(row["label"]) for row in roles["train"] if not row["text"])
    counts = {}
    for role in ("upstream", "edits", "holdout", "accurate"):
        counts[role] = sum(
            (same_text(row["text"]), same_text(row["label"])) in pairs
            or same_text(f"{row['text']} {row['label']}") in passages
            for row in roles.get(role, [])
        )
    return counts


def check_labels_known(name: str, roles: Roles, labels: list[str]) -> None:
    """Each row's label is one of the data set's classes."""
    known = set(labels)
    for role, rows in roles.items():
        for row in rows:
            if row["label"] not in known:
                raise DataError(
                    f"{name}: {role} row '{row['example_id']}' has the label '{row['label']}', "
                    f"which is not in the list of classes; {_MEND}"
                )
