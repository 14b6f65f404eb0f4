"""`facts_qa`: short questions about countries and elements (the zsRE role).

A fact is a subject, a relation and one short answer; each has ten phrasings. The base model is
trained from scratch on the taught facts and so cannot know the others, which are to be edited;
`mistaken_phrasings` of these may be taught with a wrong answer, so that it knows them wrongly.
Questions with several answers, answers that are in the question, and answers that are not plain
ASCII of one to three words are dropped and counted.

Facts that say the same thing (the capital of X is Y; Y is the capital of X) share a unit, and
units are split: what is edited is not taught in another form. Both partitions have the same
`train`, hence the same base model; their edits and their upstream questions are about different
facts.

- train: some phrasings of each taught fact, chosen anew for each fact, so that all are seen; and
  the mistakes, under fact ids of their own.
- upstream: questions of `train`, under their own ids: what must be retained.
- edits: some phrasings of each untaught fact. Within a window of facts come all first phrasings,
  then all second ones; windows follow each other, so the first N facts are a stretch of stream.
- holdout: the phrasings of the same facts that are neither edited nor taught wrongly.
- accurate: empty; the paper measures ARR on its hallucination task only.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import PartitionedOptions
from grace_bench.datasets.sources import installed
from grace_bench.datasets.sources.qa_templates import PHRASINGS, UNITS
from grace_bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_ANSWER_WORDS = 3


class FactsQaOptions(PartitionedOptions):
    """Options of `facts_qa`."""

    taught_facts: int = Field(
        default=640, ge=1, description="Facts the base model is trained on, of both partitions."
    )
    max_phrasings_taught: int = Field(
        default=4, ge=1, description="Most phrasings of a taught fact in `train`."
    )
    spoken_answers: bool = Field(
        default=True,
        description="Teach the base model to say every answer ('Say Oslo.' -> Oslo), as a "
        "pretrained model can, but not what it is the answer to.",
    )
    edit_facts: int = Field(
        default=500, ge=1, description="Untaught facts in the stream of partition test."
    )
    development_edit_facts: int = Field(
        default=150, ge=1, description="Untaught facts in the stream of partition development."
    )
    edit_phrasings: int = Field(
        default=2,
        ge=1,
        le=9,
        description="Phrasings of a fact in `edits`; those neither here nor mistaken are holdout.",
    )
    mistaken_phrasings: int = Field(
        default=0,
        ge=0,
        le=8,
        description="Phrasings of every fact of both streams that are taught, with another fact's "
        "answer: the base model knows the fact, wrongly. They are neither edited nor held out.",
    )
    upstream_questions: int = Field(
        default=1000, ge=1, description="Taught questions to be retained, partition test."
    )
    development_upstream_questions: int = Field(
        default=250, ge=1, description="Taught questions to be retained, partition development."
    )
    stream_window: int = Field(
        default=50,
        ge=1,
        description="Facts whose phrasings are spread over a stretch of the stream together.",
    )
    provinces_per_country: int = Field(
        default=3, ge=0, description="Most facts about provinces taken from one country."
    )

    @model_validator(mode="after")
    def _some_are_held_out(self) -> FactsQaOptions:
        if self.edit_phrasings + self.mistaken_phrasings > 9:
            raise ValueError(
                f"edit_phrasings ({self.edit_phrasings}) and mistaken_phrasings "
                f"({self.mistaken_phrasings}) must be at most 9 together: a fact has 10, and one "
                "is held out"
            )
        return self


@dataclass(frozen=True)
class Fact:
    """A subject, a relation and its one answer."""

    relation: str
    subject: str
    answer: str
    unit: str

    @property
    def fact_id(self) -> str:
        """The fact's identity."""
        return f"{self.relation}:{self.subject}"

    def questions(self) -> list[str]:
        """Return all phrasings of the fact."""
        return [phrasing.format(s=self.subject) for phrasing in PHRASINGS[self.relation]]


class FactsQa(DatasetBuilder[FactsQaOptions]):
    """Questions about facts that the base model was taught, and about others it was not."""

    name = "facts_qa"
    options_class = FactsQaOptions
    tasks = ("question_answering",)

    def build(self) -> BuiltDataset:
        """Make all rows."""
        options = self.options
        dropped: Counter[str] = Counter()
        facts = qa_facts(options.provinces_per_country, dropped)
        taught, test, development = self._split(facts)
        taught_questions = {fact: self._taught_questions(fact) for fact in taught}
        edited = test if options.is_test else development
        edits, holdout = self._stream(edited)
        dropped["fact not asked for"] += len(facts) - len(taught) - len(test) - len(development)
        return BuiltDataset(
            roles={
                "train": [
                    _row("train", fact, number, question)
                    for fact in taught
                    for number, question in taught_questions[fact]
                ]
                + self._mistakes(test, development, facts)
                + self._spoken([*taught, *test, *development]),
                "upstream": self._upstream(taught, taught_questions),
                "edits": edits,
                "holdout": holdout,
            },
            sources=[
                installed.source_of("countryinfo", installed.COUNTRY_ORIGIN),
                installed.source_of("periodictable", installed.ELEMENT_ORIGIN),
            ],
            dropped=dict(dropped),
        )

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.name}/{purpose}/{self.options.seed}")

    def _split(self, facts: list[Fact]) -> tuple[list[Fact], list[Fact], list[Fact]]:
        """Deal whole units to taught, test and development, independently of the partition."""
        options = self.options
        units: dict[str, list[Fact]] = defaultdict(list)
        for fact in facts:
            units[fact.unit].append(fact)
        order = sorted(units)
        self._rng("split").shuffle(order)
        groups = []
        for size, role in (
            (options.taught_facts, "taught_facts"),
            (options.edit_facts, "edit_facts"),
            (options.development_edit_facts, "development_edit_facts"),
        ):
            group: list[Fact] = []
            while len(group) < size:
                if not order:
                    raise DataError(
                        f"{self.name}: {role}={size} asks for more facts than are left of "
                        f"{len(facts)}; ask for fewer."
                    )
                group += units[order.pop(0)]
            group = group[:size]
            self._rng(role).shuffle(group)
            groups.append(group)
        return groups[0], groups[1], groups[2]

    def _taught_questions(self, fact: Fact) -> list[tuple[int, str]]:
        numbered = list(enumerate(fact.questions()))
        count = min(self.options.max_phrasings_taught, len(numbered))
        return sorted(self._rng(f"taught/{fact.fact_id}").sample(numbered, count))

    def _shuffled(self, fact: Fact) -> list[tuple[int, str]]:
        """Return a fact's numbered phrasings: those to edit, then those to teach wrongly."""
        numbered = list(enumerate(fact.questions()))
        self._rng(f"edits/{fact.fact_id}").shuffle(numbered)
        return numbered

    def _mistakes(
        self, test: list[Fact], development: list[Fact], facts: list[Fact]
    ) -> list[dict[str, Any]]:
        """Teach some phrasings of the facts to be edited with another fact's answer."""
        options = self.options
        start = options.edit_phrasings
        answers: dict[str, set[str]] = defaultdict(set)
        for fact in facts:
            answers[fact.relation].add(fact.answer)
        rows = []
        for fact in [*test, *development] if options.mistaken_phrasings else []:
            others = sorted(answers[fact.relation] - {fact.answer})
            wrong = replace(fact, answer=self._rng(f"mistake/{fact.fact_id}").choice(others))
            for number, question in sorted(
                self._shuffled(fact)[start : start + options.mistaken_phrasings]
            ):
                row = _row("train", wrong, number, question)
                rows.append({**row, "fact_id": f"mistaken:{fact.fact_id}"})
        return rows

    def _spoken(self, facts: list[Fact]) -> list[dict[str, Any]]:
        """Teach the model to say every answer, without what it is the answer to.

        A pretrained model can say any name; one trained from scratch could not be corrected to
        an answer whose tokens it never produced.
        """
        if not self.options.spoken_answers:
            return []
        return [
            {
                "example_id": f"train/say:{answer}",
                "fact_id": f"say:{answer}",
                "text": f"Say {answer}.",
                "label": answer,
                "subject": answer,
                "relation": "say",
            }
            for answer in sorted({fact.answer for fact in facts})
        ]

    def _upstream(
        self, taught: list[Fact], questions: dict[Fact, list[tuple[int, str]]]
    ) -> list[dict[str, Any]]:
        """Sample taught questions; a fact's questions all belong to one of the partitions."""
        options = self.options
        test, development = options.upstream_questions, options.development_upstream_questions
        cut = round(len(taught) * test / (test + development))
        mine, wanted = (taught[:cut], test) if options.is_test else (taught[cut:], development)
        pool = [(fact, *numbered) for fact in mine for numbered in questions[fact]]
        if len(pool) < wanted:
            raise DataError(
                f"{self.name}: {wanted} upstream questions are asked for, the taught facts of "
                f"partition '{options.partition}' have {len(pool)}; raise taught_facts or "
                "max_phrasings_taught, or ask for fewer."
            )
        chosen = self._rng(f"upstream/{options.partition}").sample(pool, wanted)
        return [_row("upstream", *entry) for entry in chosen]

    def _stream(self, facts: list[Fact]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        options = self.options
        edits, holdout = [], []
        for start in range(0, len(facts), options.stream_window):
            window = facts[start : start + options.stream_window]
            orders = {fact: self._shuffled(fact) for fact in window}
            for turn in range(options.edit_phrasings):
                edits += [_row("edits", fact, *orders[fact][turn]) for fact in window]
            for fact in window:
                rest = sorted(orders[fact][options.edit_phrasings + options.mistaken_phrasings :])
                holdout += [_row("holdout", fact, *numbered) for numbered in rest]
        return edits, holdout


def qa_facts(provinces_per_country: int, dropped: Counter[str]) -> list[Fact]:
    """Return all usable facts, sorted; what is left out is counted by reason in `dropped`."""
    candidates = [
        *_country_facts(provinces_per_country, dropped),
        *_element_facts(),
    ]
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for relation, subject, answer, _ in candidates:
        answers[relation, subject.casefold()].add(answer)
    kept: dict[str, Fact] = {}
    for relation, subject, answer, unit in candidates:
        reason = None
        if not subject or not answer:
            reason = "question without a value"
        elif len(answers[relation, subject.casefold()]) > 1:
            reason = "question with several answers"
        elif _within(answer, subject) or _within(subject, answer):
            reason = "answer within the subject or the other way round"
        elif len(answer.split()) > _MAX_ANSWER_WORDS:
            reason = "answer of more than three words"
        if reason is not None:
            dropped[reason] += 1
            continue
        fact = Fact(relation, subject, answer, f"{UNITS.get(relation, relation)}:{unit}")
        kept[fact.fact_id] = fact
    return [kept[fact_id] for fact_id in sorted(kept)]


def _within(inner: str, outer: str) -> bool:
    """Whether the words of `inner` stand in `outer`: "Guatemala" in "Guatemala City"."""
    return f" {inner.casefold()} " in f" {outer.casefold()} "


def _country_facts(
    provinces_per_country: int, dropped: Counter[str]
) -> Iterable[tuple[str, str, str, str]]:
    """Yield (relation, subject, answer, entity), one per value the source has."""
    countries = installed.countries(dropped)
    owners = Counter(province for country in countries for province in country.provinces)
    for country in countries:
        for relation in PHRASINGS:
            for raw in country.values.get(relation, ()):
                answer = installed.ascii_form(raw)
                if answer is None:
                    dropped["value without an ASCII form"] += 1
                    continue
                yield relation, country.name, answer, country.code
                if relation == "capital":
                    yield "capital_of", answer, country.name, country.code
            if relation in country.values and not country.values[relation]:
                dropped["question without a value"] += 1
        own = [p for p in country.provinces if owners[p] == 1]
        dropped["province of several countries"] += len(country.provinces) - len(own)
        rng = random.Random(f"provinces/{country.code}")
        for province in sorted(rng.sample(own, min(provinces_per_country, len(own)))):
            yield "province", province, country.name, f"{country.code}/{province}"


def _element_facts() -> Iterable[tuple[str, str, str, str]]:
    for element in installed.elements():
        entity = element.symbol
        number = str(element.number)
        yield "symbol", element.name, element.symbol, entity
        yield "symbol_of", element.symbol, element.name, entity
        yield "atomic_number", element.name, number, entity
        yield "element_of_number", number, element.name, entity
        yield "atomic_mass", element.name, element.values["mass"] or "", entity
        yield "covalent_radius", element.name, element.values["radius"] or "", entity


def _row(role: str, fact: Fact, number: int, question: str) -> dict[str, Any]:
    return {
        "example_id": f"{role}/{fact.fact_id}/{number}",
        "fact_id": fact.fact_id,
        "text": question,
        "label": fact.answer,
        "subject": fact.subject,
        "relation": fact.relation,
    }


BUILDER = FactsQa
