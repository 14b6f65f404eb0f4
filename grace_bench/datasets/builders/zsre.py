"""`zsre`: the question answering of the paper: zsRE questions edited, NQ questions retained.

    ZsreOptions(edits="structured_zeroshot-dev-new_annotated_final.jsonl", upstream="nq_train.json",
                stream="released")

Edits come from the released jsonl {input, output: [{answer}], filtered_rephrases, ...} or from the
JSON list of MEND and EasyEdit {subject, src, rephrase, answers, ...}. The label is the first true
answer, as in the released code, and not the alternative that MEND teaches. Records that share a
question and its answer are one fact, and so are records that name the same subject and the same
answer: zsRE asks for most of its facts in several records ("Who is Andy Luckey's dad?", "What is
the name of Andy Luckey father?"), and one's edit would teach what another holds out. The released
jsonl names no subjects. A question with different answers is dropped.

- stream `released`: the released rule, random numbers included: each record's own question, and
  its first ten rephrasings if it has as many; the first 10000 questions in a random order; the
  first half edited, the second held out. Kept of it is what keeps the promises of a data set:
  no question twice, and no held-out question of a fact that is never edited.
- stream `phrasings`: of each fact some phrasings are edited and all others held out. Within a
  window of facts come all first phrasings, then all second ones, as in `facts_qa`.
- upstream, train: NQ questions, none of which is a zsRE question of the stream. accurate: empty.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import SOURCE_KEYS, Source
from grace_bench.datasets.reading.fields import (
    answers_of,
    complete,
    form_of,
    is_decodable,
    row_of,
    same_text,
    text_of,
    unfit,
)
from grace_bench.datasets.reading.files import read_records
from grace_bench.datasets.sources.nq import NqOptions, nq_roles, read_questions, same_question
from grace_bench.errors import DataError

if TYPE_CHECKING:
    from grace_bench.datasets.reading.files import Records

_FORMS = {
    "released": ("input", "output", "filtered_rephrases"),
    "mend": ("src", "rephrase", "answers"),
}
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
        description="released: halves of the questions at random, as the released code does; "
        "phrasings: some phrasings of each fact are edited, its others are held out.",
    )
    rephrasings: int = Field(
        default=10,
        ge=0,
        description="Rephrasings used of a record. In stream released, records with fewer give "
        "their own question alone.",
    )
    pool: int = Field(
        default=10000, ge=2, description="Stream released: so many questions are halved."
    )
    edit_facts: int | None = Field(
        default=None, ge=1, description="Stream phrasings: facts in the stream; null for all."
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
        description="Stream phrasings: facts whose phrasings are spread over a stretch of the "
        "stream together.",
    )


@dataclass(frozen=True)
class Record:
    """One record: its right answers, the one that is taught first, and the questions for them."""

    record_id: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    subject: str | None

    @property
    def answer(self) -> str:
        """The answer that is taught."""
        return self.answers[0]


@dataclass(frozen=True)
class Phrasing:
    """One question of a record, as the number-th of its questions."""

    record: Record
    number: int

    @property
    def text(self) -> str:
        """The question."""
        return self.record.questions[self.number]

    @property
    def key(self) -> str:
        """What it shares with the same question in another record."""
        return same_question(self.text)


class Zsre(DatasetBuilder[ZsreOptions]):
    """Questions of zsRE as the stream, of NQ as what is to be retained."""

    name = "zsre"
    options_class = ZsreOptions
    tasks = ("question_answering",)

    def build(self) -> BuiltDataset:
        """Read both sources and make all rows."""
        options = self.options
        dropped: Counter[str] = Counter()
        records = read_records(options.edits, _WHAT)
        facts = _records(records, dropped)
        questions, nq = read_questions(options.upstream, dropped)
        stream = self._released if options.stream == "released" else self._phrasings
        roles = stream(facts, dropped)
        edited = {same_question(row["text"]) for rows in roles.values() for row in rows}
        roles |= nq_roles(questions, options, self.rng("upstream"), edited, dropped)
        return BuiltDataset(
            roles=roles,
            sources=[records.entry, nq],
            dropped=+dropped,
        )

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.name}/{purpose}/{self.options.seed}")

    def _released(
        self, records: list[Record], dropped: Counter[str]
    ) -> dict[str, list[dict[str, Any]]]:
        import numpy as np

        size = self.options.rephrasings
        pool = []
        for record in records:
            enough = len(record.questions) > size
            pool += [Phrasing(record, n) for n in range(size + 1 if enough else 1)]
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
                edits.append(self._row("edits", phrasing, fact_of))
        known = {None, *(row["fact_id"] for row in edits)}  # None: counted by `_usable`
        for phrasing in shuffled[half:]:
            if fact_of.get(phrasing.key) not in known:
                dropped["held-out question of a fact that is not edited"] += 1
            elif _usable(phrasing, fact_of, seen, dropped):
                holdout.append(self._row("holdout", phrasing, fact_of))
        return {"edits": edits, "holdout": holdout}

    def _phrasings(
        self, records: list[Record], dropped: Counter[str]
    ) -> dict[str, list[dict[str, Any]]]:
        options = self.options
        every = [
            Phrasing(record, n)
            for record in records
            for n in range(min(len(record.questions), options.rephrasings + 1))
        ]
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
                f"{options.edit_phrasings} phrasings; ask for fewer, or lower edit_phrasings."
            )
        dropped["fact not asked for"] += len(kept) - wanted
        return self._windows(self.rng("facts").sample(kept, wanted), fact_of)

    def _windows(
        self, facts: list[list[Phrasing]], fact_of: dict[str, str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Spread the phrasings of each fact over the window it is in."""
        options = self.options
        edits, holdout = [], []
        orders = []
        for group in facts:
            rng = self.rng(f"edits/{group[0].record.record_id}")
            orders.append(rng.sample(group, len(group)))
        for start in range(0, len(orders), options.stream_window):
            window = orders[start : start + options.stream_window]
            for turn in range(options.edit_phrasings):
                edits += [self._row("edits", group[turn], fact_of) for group in window]
            for group in window:
                rest = group[options.edit_phrasings :]
                holdout += [self._row("holdout", phrasing, fact_of) for phrasing in rest]
        return {"edits": edits, "holdout": holdout}

    def _row(self, role: str, phrasing: Phrasing, fact_of: dict[str, str]) -> dict[str, Any]:
        record = phrasing.record
        return row_of(
            role,
            f"{record.record_id}/{phrasing.number}",
            fact_of[phrasing.key],
            phrasing.text,
            record.answers,
            record.subject,
        )


def _usable(
    phrasing: Phrasing, fact_of: dict[str, str], seen: set[str], dropped: Counter[str]
) -> bool:
    """Say whether a question has one answer and was not met before; count it otherwise."""
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
        answers[phrasing.key].add(same_text(phrasing.record.answer))
    single = [phrasing for phrasing in phrasings if len(answers[phrasing.key]) == 1]
    above: dict[str, str] = {}

    def root(record_id: str) -> str:
        while (up := above.get(record_id, record_id)) != record_id:
            record_id = up
        return record_id

    owner: dict[str, str] = {}
    named: dict[tuple[str, str], str] = {}
    for phrasing in single:
        record = phrasing.record
        mine = root(record.record_id)
        above[mine] = root(owner.setdefault(phrasing.key, mine))
        if record.subject is not None:
            mine = root(mine)
            what = (same_text(record.subject), same_text(record.answer))
            above[mine] = root(named.setdefault(what, mine))
    return {key: f"zsre:{root(record_id)}" for key, record_id in owner.items()}


def _records(records: Records, dropped: Counter[str]) -> list[Record]:
    """Return the usable records of either form, their questions cleaned."""
    form = form_of(records, _FORMS)
    made: list[Record] = []
    ids: set[str] = set()
    for number, row in complete(
        records.rows,
        _FORMS[form],
        dropped,
        lists=("output", "filtered_rephrases", "rephrase", "answers"),
    ):
        read = _released_fields if form == "released" else _mend_fields
        question, others, answers = read(row)
        record_id = text_of(row.get("id")) or str(number)
        reason = unfit(question, "zsRE question") or unfit(answers[0], "zsRE answer")
        if reason is None and record_id in ids:
            reason = "zsRE record with the id of an earlier one"
        if reason is not None:
            dropped[reason] += 1
            continue
        ids.add(record_id)
        fit = [text for text in others if not unfit(text, "")]
        dropped["rephrasing empty or undecodable"] += len(others) - len(fit)
        subject = text_of(row.get("subject")) or None
        if subject is not None and not is_decodable(subject):
            dropped["undecodable subject"] += 1
            subject = None
        made.append(Record(record_id, (question, *fit), answers, subject))
    return made


def _released_fields(row: dict[str, Any]) -> tuple[str, list[str], tuple[str, ...]]:
    outputs = row["output"] if isinstance(row["output"], list) else [row["output"]]
    answers = [o.get("answer") if isinstance(o, dict) else o for o in outputs]
    return text_of(row["input"]), _texts(row["filtered_rephrases"]), answers_of(answers)


def _mend_fields(row: dict[str, Any]) -> tuple[str, list[str], tuple[str, ...]]:
    return text_of(row["src"]), _texts(row["rephrase"]), answers_of(row["answers"])


def _texts(value: Any) -> list[str]:
    return [text_of(item) for item in (value if isinstance(value, list) else [value])]


BUILDER = Zsre
