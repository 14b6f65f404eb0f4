"""Natural Questions: what a question answering model is to retain.

Forms: {"questions": [...], "answers": [...]} (nq_train.json), {question, answer: [...]} per line
(NQ-open), and the `loc` questions of a JSON list of MEND and EasyEdit. All answers of a question
are right; the first one is taught.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from grace_bench.datasets.options import SOURCE_KEYS, DatasetOptions, Source
from grace_bench.datasets.reading.fields import (
    Roles,
    answers_of,
    complete,
    repeated,
    row_of,
    same_text,
    text_of,
    unfit,
)
from grace_bench.datasets.reading.files import read_records

_FORMS = {
    "nq_train": ("questions", "answers"),
    "nq_open": ("question", "answer"),
    "mend": ("loc", "loc_ans"),
}
_LOC_PREFIX = "nq question:"


class NqOptions(DatasetOptions):
    """Options of builders with upstream questions from NQ."""

    upstream: Source = Field(
        description="NQ questions: nq_train.json, NQ-open jsonl, or the `loc` questions of a "
        f"JSON list of MEND and EasyEdit {SOURCE_KEYS}."
    )
    upstream_questions: int = Field(
        default=1000, ge=1, description="Maximum NQ questions in `upstream`."
    )
    upstream_sample: Literal["first", "random"] = Field(
        default="first", description="Use the first questions, as released, or a random sample."
    )
    upstream_taught: bool = Field(
        default=True,
        description="Whether `train` includes the questions of `upstream`, so that a base model "
        "trained here knows what it is to retain.",
    )
    train_questions: int | None = Field(
        default=None, ge=1, description="Use only the first N NQ questions in `train`; null = all."
    )


@dataclass(frozen=True)
class Question:
    """A question with its right answers; the first one is taught."""

    number: int
    text: str
    answers: tuple[str, ...]


def same_question(text: str) -> str:
    """Return `same_text` of a question, without the prefix that MEND gives those of NQ."""
    return same_text(text).removeprefix(_LOC_PREFIX).strip()


def read_questions(source: Source, dropped: Counter[str]) -> tuple[list[Question], dict[str, str]]:
    """Return the usable questions in their order, and the source's entry in the manifest."""
    records = read_records(source, "the NQ questions (nq_train.json or NQ-open jsonl)")
    form = records.form(_FORMS)
    fields = _FORMS[form]
    questions = []
    seen: dict[str, str] = {}
    for number, record in complete(records.rows, fields, dropped, lists=fields[1:]):
        text, answers = text_of(record[fields[0]]), answers_of(record[fields[1]])
        if form == "mend":
            text = text.removeprefix(_LOC_PREFIX).strip()
        reason = (
            unfit(text, "NQ question")
            or unfit(answers[0], "NQ answer")
            or repeated(seen, same_question(text), answers[0], "NQ question", "answer")
        )
        if reason is None:
            questions.append(Question(number, text, answers))
        else:
            dropped[reason] += 1
    return questions, records.entry


def nq_roles(
    questions: list[Question],
    options: NqOptions,
    rng: random.Random,
    edited: set[str],
    dropped: Counter[str],
) -> Roles:
    """Make `upstream` and `train` of the questions whose `same_question` is not in `edited`."""
    free = [q for q in questions if same_question(q.text) not in edited]
    dropped["NQ question that is also a zsRE question"] += len(questions) - len(free)
    if options.upstream_sample == "random":
        free = rng.sample(free, len(free))
    upstream = free[: options.upstream_questions]
    train = free if options.upstream_taught else free[len(upstream) :]
    if options.train_questions is not None:
        train = train[: options.train_questions]
    used = {question.number for question in [*upstream, *train]}
    dropped["NQ question not requested"] += len(free) - len(used)
    return {
        role: [row_of(role, f"nq:{q.number}", f"nq:{q.number}", q.text, q.answers) for q in chosen]
        for role, chosen in (("train", train), ("upstream", upstream))
    }
