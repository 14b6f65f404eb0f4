"""`zsre`: the question answering of the paper: zsRE questions edited, NQ questions retained.

    ZsreOptions(edits="structured_zeroshot-dev-new_annotated_final.jsonl", upstream="nq_train.json",
                stream="released")

Edits come from the released jsonl {input, output: [{answer}], filtered_rephrases, ...} or from the
JSON list of MEND and EasyEdit {subject, src, rephrase, answers, ...}. The label is the first true
answer, as in the released code, and not the alternative that MEND teaches.

zsRE asks for most of its facts in several records ("Who is Andy Luckey's dad?", "What is the name
of Andy Luckey father?"), so editing one would teach what another holds out. Records are one fact if
they share a question and its answer, or name the same subject and answer; the released jsonl names
no subjects. A question with different answers is dropped.

- stream `released`: the released rule, including its random numbers: each record's own question,
  and its first ten rephrasings if it has ten; the first 10000 questions in random order; the first
  half edited, the second held out. Removed are repeated questions and held-out questions of facts
  that are never edited.
- stream `phrasings`: some phrasings of each fact are edited and the others held out. Within a
  window of facts come all first phrasings, then all second ones, as in `facts_qa`.
- upstream, train: NQ questions, none of which is a zsRE question of the stream. accurate: empty.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder, interleave
from grace_bench.datasets.options import SOURCE_KEYS, Source
from grace_bench.datasets.reading.fields import (
    Roles,
    Row,
    answers_of,
    complete,
    is_decodable,
    row_of,
    same_text,
    text_of,
    texts_of,
    unfit,
)
from grace_bench.datasets.reading.files import Records, read_records
from grace_bench.datasets.sources.nq import NqOptions, nq_roles, read_questions, same_question
from grace_bench.errors import DataError

_FORMS = {
    "released": ("input", "output", "filtered_rephrases"),
    "mend": ("src", "answers", "rephrase"),
}
"""Fields of the question, its answers and its rephrasings."""

_WHAT = (
    "the zsRE questions (structured_zeroshot-dev-new_annotated_final.jsonl, or a JSON list in the "
    "form of MEND and EasyEdit)"
)


class ZsreOptions(NqOptions):
    """Options of `zsre`."""

    seed: int = Field(
        default=42,
        ge=0,
        lt=2**32,
        description="Seed of every choice the builder makes; released: 42.",
    )
    edits: Source = Field(
        description="zsRE questions: the released jsonl or the JSON list of MEND and EasyEdit "
        f"{SOURCE_KEYS}."
    )
    stream: Literal["released", "phrasings"] = Field(
        default="phrasings",
        description="released: random halves of the questions, as in the released code; "
        "phrasings: some phrasings of each fact are edited, the others held out.",
    )
    rephrasings: int = Field(
        default=10,
        ge=0,
        description="Rephrasings used per record. In stream released, a record with fewer "
        "contributes only its own question.",
    )
    pool: int = Field(
        default=10000, ge=2, description="Stream released: use only the first N questions."
    )
    edit_facts: int | None = Field(
        default=None, ge=1, description="Stream phrasings: facts in the stream; null = all."
    )
    edit_phrasings: int = Field(
        default=5,
        ge=1,
        description="Stream phrasings: phrasings of a fact in `edits`; facts without one more "
        "for holdout are dropped.",
    )
    stream_window: int = Field(
        default=50,
        ge=1,
        description="Stream phrasings: facts whose phrasings are interleaved in the stream.",
    )


@dataclass(frozen=True)
class Phrasing:
    """One of the questions of a record, with the record's right answers; the first is taught."""

    record: str
    number: int
    text: str
    answers: tuple[str, ...]
    subject: str | None

    @property
    def key(self) -> str:
        """What it shares with the same question in another record."""
        return same_question(self.text)

    def row(self, role: str, fact_of: dict[str, str]) -> Row:
        """Return the question's row, given the fact of each key."""
        number = f"{self.record}/{self.number}"
        return row_of(role, number, fact_of[self.key], self.text, self.answers, self.subject)


class Zsre(DatasetBuilder[ZsreOptions]):
    """Questions of zsRE as the stream, questions of NQ to be retained."""

    name = "zsre"
    options_class = ZsreOptions
    tasks = ("question_answering",)

    def build(self) -> BuiltDataset:
        """Read both sources and make all rows."""
        options = self.options
        dropped: Counter[str] = Counter()
        records = read_records(options.edits, _WHAT)
        usable = _records(records, dropped)
        questions, nq = read_questions(options.upstream, dropped)
        stream = self._released if options.stream == "released" else self._phrasings
        roles = stream(usable, dropped)
        edited = {same_question(row["text"]) for rows in roles.values() for row in rows}
        roles |= nq_roles(questions, options, self.rng("upstream"), edited, dropped)
        return BuiltDataset(roles=roles, sources=[records.entry, nq], dropped=dropped)

    def _released(self, records: list[list[Phrasing]], dropped: Counter[str]) -> Roles:
        import numpy as np

        size = self.options.rephrasings
        pool = [p for asked in records for p in asked[: size + 1 if len(asked) > size else 1]]
        dropped["question beyond the pool"] += max(0, len(pool) - self.options.pool)
        pool = pool[: self.options.pool]
        # The same numbers as np.random.seed(seed); np.random.choice(...) in the released code.
        order = np.random.RandomState(self.options.seed).choice(len(pool), len(pool), replace=False)
        shuffled = [pool[i] for i in order]
        half = len(shuffled) // 2
        fact_of = _facts(pool)
        edits, holdout = [], []
        seen: set[str] = set()
        for phrasing in shuffled[:half]:
            if _usable(phrasing, fact_of, seen, dropped):
                edits.append(phrasing.row("edits", fact_of))
        known = {None, *(row["fact_id"] for row in edits)}  # None: counted by `_usable`
        for phrasing in shuffled[half:]:
            if fact_of.get(phrasing.key) not in known:
                dropped["held-out question of a fact that is not edited"] += 1
            elif _usable(phrasing, fact_of, seen, dropped):
                holdout.append(phrasing.row("holdout", fact_of))
        return {"edits": edits, "holdout": holdout}

    def _phrasings(self, records: list[list[Phrasing]], dropped: Counter[str]) -> Roles:
        options = self.options
        every = [p for asked in records for p in asked[: options.rephrasings + 1]]
        fact_of = _facts(every)
        seen: set[str] = set()
        by_fact: dict[str, list[Phrasing]] = defaultdict(list)
        for phrasing in every:
            if _usable(phrasing, fact_of, seen, dropped):
                by_fact[fact_of[phrasing.key]].append(phrasing)
        kept = [group for group in by_fact.values() if len(group) > options.edit_phrasings]
        dropped["fact with too few phrasings"] += len(by_fact) - len(kept)
        wanted = len(kept) if options.edit_facts is None else options.edit_facts
        if wanted > len(kept):
            raise DataError(
                f"{self.name}: edit_facts={wanted}, but only {len(kept)} facts have more than "
                f"{options.edit_phrasings} phrasings; request fewer, or lower edit_phrasings."
            )
        dropped["fact not requested"] += len(kept) - wanted
        facts = [
            self.rng(f"edits/{group[0].record}").sample(group, len(group))
            for group in self.rng("facts").sample(kept, wanted)
        ]
        edits, holdout = interleave(facts, options.stream_window, options.edit_phrasings)
        return {
            "edits": [phrasing.row("edits", fact_of) for phrasing in edits],
            "holdout": [phrasing.row("holdout", fact_of) for phrasing in holdout],
        }


def _usable(
    phrasing: Phrasing, fact_of: dict[str, str], seen: set[str], dropped: Counter[str]
) -> bool:
    """Whether a question has one answer and was not met before; count it otherwise."""
    key = phrasing.key
    if key not in fact_of:
        dropped["question with different answers"] += 1
    elif key in seen:
        dropped["question repeated"] += 1
    else:
        seen.add(key)
        return True
    return False


def _facts(phrasings: list[Phrasing]) -> dict[str, str]:
    """Map each question that has one answer to its fact, named after one of its records.

    Records that share such a question, or their subject and their answer, are one fact.
    """
    answers: dict[str, set[str]] = defaultdict(set)
    for phrasing in phrasings:
        answers[phrasing.key].add(same_text(phrasing.answers[0]))
    above: dict[str, str] = {}

    def root(record_id: str) -> str:
        while (up := above.get(record_id, record_id)) != record_id:
            record_id = up
        return record_id

    owner: dict[str, str] = {}
    named: dict[tuple[str, str], str] = {}
    for phrasing in phrasings:
        if len(answers[phrasing.key]) > 1:
            continue
        mine = root(phrasing.record)
        above[mine] = root(owner.setdefault(phrasing.key, mine))
        if phrasing.subject is not None:
            mine = root(mine)
            about = (same_text(phrasing.subject), same_text(phrasing.answers[0]))
            above[mine] = root(named.setdefault(about, mine))
    return {key: f"zsre:{root(record_id)}" for key, record_id in owner.items()}


def _records(records: Records, dropped: Counter[str]) -> list[list[Phrasing]]:
    """Return the questions of each usable record, of either form: its own, then the rephrasings."""
    fields = _FORMS[records.form(_FORMS)]
    kept: dict[str, list[Phrasing]] = {}
    for number, row in complete(records.rows, fields, dropped, lists=fields[1:]):
        question, answers, rephrasings = (row[field] for field in fields)
        question = text_of(question)
        listed = answers if isinstance(answers, list) else [answers]
        right = answers_of([a.get("answer") if isinstance(a, dict) else a for a in listed])
        record_id = text_of(row.get("id")) or str(number)
        reason = unfit(question, "zsRE question") or unfit(right[0], "zsRE answer")
        if reason is None and record_id in kept:
            reason = "zsRE record with the id of an earlier one"
        if reason is not None:
            dropped[reason] += 1
            continue
        others = texts_of(rephrasings)
        fit = [text for text in others if not unfit(text, "")]
        dropped["rephrasing empty or undecodable"] += len(others) - len(fit)
        subject = text_of(row.get("subject")) or None
        if subject is not None and not is_decodable(subject):
            dropped["undecodable subject"] += 1
            subject = None
        kept[record_id] = [
            Phrasing(record_id, n, text, right, subject) for n, text in enumerate([question, *fit])
        ]
    return list(kept.values())


BUILDER = Zsre
