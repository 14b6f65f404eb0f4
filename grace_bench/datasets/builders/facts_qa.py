"""`facts_qa`: short questions about countries and elements (the zsRE role).

A fact is a subject, a relation and one short answer; each has ten phrasings. The base model is
trained from scratch on the taught facts, so it cannot know the facts to be edited, unless
`mistaken_phrasings` of each are taught with a wrong answer. Questions with several answers, answers
contained in the question, and answers that are not ASCII of one to three words are dropped and
counted.

Facts that state the same thing (the capital of X is Y; Y is the capital of X) form a unit, and
units are split between the roles: no edited fact is taught in another form. Both partitions have
the same `train`, hence the same base model; their edits and upstream questions are about different
facts.

- train: some phrasings of each taught fact, chosen anew for each fact, so that all are seen; and
  the mistakes, under their own fact ids.
- upstream: questions of `train`, under their own ids: what must be retained.
- edits: some phrasings of each untaught fact. Within a window of facts come all first phrasings,
  then all second ones, and so on; the first N facts are the beginning of the stream.
- holdout: the phrasings of the same facts that are neither edited nor taught wrongly.
- accurate: empty; the paper measures ARR on its hallucination task only.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import Field, model_validator

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder, interleave
from grace_bench.datasets.options import PartitionedOptions
from grace_bench.datasets.reading.fields import Row, row_of
from grace_bench.datasets.reading.files import load_templates
from grace_bench.datasets.sources import installed
from grace_bench.errors import DataError

_MAX_ANSWER_WORDS = 3
Numbered = tuple[int, str]
"""A phrasing's number and its question."""


class FactsQaOptions(PartitionedOptions):
    """Options of `facts_qa`."""

    taught_facts: int = Field(
        default=640, ge=1, description="Facts the base model is trained on, in both partitions."
    )
    max_phrasings_taught: int = Field(
        default=4, ge=1, description="Maximum phrasings of a taught fact in `train`."
    )
    spoken_answers: bool = Field(
        default=True,
        description="Teach the base model to say every answer ('Say Oslo.' -> Oslo), as a "
        "pretrained model can, but not which question it answers.",
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
        description="Phrasings of a fact in `edits`; those not edited or mistaken are held out.",
    )
    mistaken_phrasings: int = Field(
        default=0,
        ge=0,
        le=8,
        description="Phrasings of each streamed fact taught with another fact's answer, so that "
        "the base model knows the fact wrongly. They are neither edited nor held out.",
    )
    upstream_questions: int = Field(
        default=1000, ge=1, description="Taught questions to be retained in partition test."
    )
    development_upstream_questions: int = Field(
        default=250, ge=1, description="Taught questions to be retained in partition development."
    )
    stream_window: int = Field(
        default=50,
        ge=1,
        description="Facts whose phrasings are interleaved in the stream.",
    )
    provinces_per_country: int = Field(
        default=3, ge=0, description="Maximum facts about provinces of one country."
    )

    @model_validator(mode="after")
    def _some_are_held_out(self) -> FactsQaOptions:
        if self.edit_phrasings + self.mistaken_phrasings > 9:
            raise ValueError(
                f"edit_phrasings ({self.edit_phrasings}) and mistaken_phrasings "
                f"({self.mistaken_phrasings}) must be at most 9 together: a fact has 10, of which "
                "at least one is held out"
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

    def questions(self) -> list[Numbered]:
        """Return all phrasings of the fact, numbered."""
        phrasings = load_templates("facts_qa")["phrasings"][self.relation]
        return [(number, text.format(s=self.subject)) for number, text in enumerate(phrasings)]

    def row(self, role: str, number: int, question: str) -> Row:
        """Return the row of one of the fact's questions."""
        example = f"{self.fact_id}/{number}"
        return row_of(
            role, example, self.fact_id, question, self.answer, self.subject, self.relation
        )


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
        questions = {fact: self._taught_questions(fact) for fact in taught}
        used = [*taught, *test, *development]
        dropped["fact not requested"] += len(facts) - len(used)
        return BuiltDataset(
            roles={
                "train": [
                    *(fact.row("train", *asked) for fact in taught for asked in questions[fact]),
                    *self._mistakes([*test, *development], facts),
                    *self._spoken(used),
                ],
                "upstream": self._upstream(taught, questions),
                **self._stream(test if options.partition == "test" else development),
            },
            sources=installed.sources_of("countryinfo", "periodictable"),
            dropped=dropped,
        )

    def _split(self, facts: list[Fact]) -> list[list[Fact]]:
        """Divide whole units into taught, test and development, whatever the partition."""
        options = self.options
        units: dict[str, list[Fact]] = defaultdict(list)
        for fact in facts:
            units[fact.unit].append(fact)
        order = sorted(units)
        self.rng("split").shuffle(order)
        groups = []
        for role in ("taught_facts", "edit_facts", "development_edit_facts"):
            size = getattr(options, role)
            group: list[Fact] = []
            while len(group) < size:
                if not order:
                    raise DataError(
                        f"{self.name}: {role}={size} is more than are left of {len(facts)} facts; "
                        "request fewer."
                    )
                group += units[order.pop(0)]
            group = group[:size]
            self.rng(role).shuffle(group)
            groups.append(group)
        return groups

    def _taught_questions(self, fact: Fact) -> list[Numbered]:
        questions = fact.questions()
        count = min(self.options.max_phrasings_taught, len(questions))
        return sorted(self.rng(f"taught/{fact.fact_id}").sample(questions, count))

    def _shuffled(self, fact: Fact) -> list[Numbered]:
        """Return a fact's phrasings: those to edit, then those to teach wrongly."""
        questions = fact.questions()
        self.rng(f"edits/{fact.fact_id}").shuffle(questions)
        return questions

    def _mistakes(self, streamed: list[Fact], facts: list[Fact]) -> list[Row]:
        """Teach some phrasings of the facts to be edited with another fact's answer."""
        start = self.options.edit_phrasings
        end = start + self.options.mistaken_phrasings
        answers: dict[str, set[str]] = defaultdict(set)
        for fact in facts:
            answers[fact.relation].add(fact.answer)
        rows = []
        for fact in streamed if end > start else []:
            others = sorted(answers[fact.relation] - {fact.answer})
            wrong = replace(fact, answer=self.rng(f"mistake/{fact.fact_id}").choice(others))
            for asked in sorted(self._shuffled(fact)[start:end]):
                row = wrong.row("train", *asked)
                rows.append({**row, "fact_id": f"mistaken:{fact.fact_id}"})
        return rows

    def _spoken(self, facts: list[Fact]) -> list[Row]:
        """Teach the model to say every answer, but not which question it answers.

        A pretrained model can say any name; a model trained from scratch could not be corrected to
        an answer whose tokens it never produced.
        """
        answers = sorted({fact.answer for fact in facts}) if self.options.spoken_answers else []
        return [
            row_of(
                "train", f"say:{answer}", f"say:{answer}", f"Say {answer}.", answer, answer, "say"
            )
            for answer in answers
        ]

    def _upstream(self, taught: list[Fact], questions: dict[Fact, list[Numbered]]) -> list[Row]:
        """Sample taught questions; all questions of a fact belong to one of the partitions."""
        options = self.options
        test, development = options.upstream_questions, options.development_upstream_questions
        cut = round(len(taught) * test / (test + development))
        mine = options.share(taught, cut, len(taught) - cut)
        wanted = test if options.partition == "test" else development
        pool = [(fact, *asked) for fact in mine for asked in questions[fact]]
        if len(pool) < wanted:
            raise DataError(
                f"{self.name}: {wanted} upstream questions are requested, but the taught facts of "
                f"partition '{options.partition}' have {len(pool)}; raise taught_facts or "
                "max_phrasings_taught, or request fewer."
            )
        chosen = self.rng(f"upstream/{options.partition}").sample(pool, wanted)
        return [fact.row("upstream", *asked) for fact, *asked in chosen]

    def _stream(self, facts: list[Fact]) -> dict[str, list[Row]]:
        """Return `edits` and `holdout`, window by window."""
        options = self.options
        turns = options.edit_phrasings
        groups = []
        for fact in facts:
            asked = self._shuffled(fact)
            asked[turns:] = sorted(asked[turns + options.mistaken_phrasings :])
            groups.append([(fact, *question) for question in asked])
        return {
            role: [fact.row(role, *question) for fact, *question in asked]
            for role, asked in zip(
                ("edits", "holdout"),
                interleave(groups, options.stream_window, turns),
                strict=True,
            )
        }


def qa_facts(provinces_per_country: int, dropped: Counter[str]) -> list[Fact]:
    """Return all usable facts, sorted; count what is left out in `dropped`, by reason."""
    units = load_templates("facts_qa")["units"]
    candidates = [*_country_facts(provinces_per_country, dropped), *_element_facts()]
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for relation, subject, answer, _ in candidates:
        answers[relation, subject.casefold()].add(answer)
    kept: dict[str, Fact] = {}
    for relation, subject, answer, unit in candidates:
        if not subject or not answer:
            dropped["question without a value"] += 1
        elif len(answers[relation, subject.casefold()]) > 1:
            dropped["question with several answers"] += 1
        elif _within(answer, subject) or _within(subject, answer):
            dropped["answer contained in the subject, or the reverse"] += 1
        elif len(answer.split()) > _MAX_ANSWER_WORDS:
            dropped["answer of more than three words"] += 1
        else:
            fact = Fact(relation, subject, answer, f"{units.get(relation, relation)}:{unit}")
            kept[fact.fact_id] = fact
    return [kept[fact_id] for fact_id in sorted(kept)]


def _within(inner: str, outer: str) -> bool:
    """Whether `outer` contains the words of `inner`: "Guatemala City" contains "Guatemala"."""
    return f" {inner.casefold()} " in f" {outer.casefold()} "


def _country_facts(
    provinces_per_country: int, dropped: Counter[str]
) -> Iterable[tuple[str, str, str, str]]:
    """Yield (relation, subject, answer, entity), one per value in the source."""
    relations = load_templates("facts_qa")["phrasings"]
    countries = installed.countries(dropped)
    owners = Counter(province for country in countries for province in country.provinces)
    for country in countries:
        for relation, values in country.values.items():
            if relation not in relations:
                continue
            if not values:
                dropped["question without a value"] += 1
            for raw in values:
                answer = installed.ascii_form(raw)
                if answer is None:
                    dropped["value without an ASCII form"] += 1
                    continue
                yield relation, country.name, answer, country.code
                if relation == "capital":
                    yield "capital_of", answer, country.name, country.code
        own = [p for p in country.provinces if owners[p] == 1]
        dropped["province of several countries"] += len(country.provinces) - len(own)
        rng = random.Random(f"provinces/{country.code}")
        for province in sorted(rng.sample(own, min(provinces_per_country, len(own)))):
            yield "province", province, country.name, f"{country.code}/{province}"


def _element_facts() -> Iterable[tuple[str, str, str, str]]:
    for element in installed.elements():
        entity, values = element.symbol, element.values
        yield "symbol", element.name, element.symbol, entity
        yield "symbol_of", element.symbol, element.name, entity
        yield "atomic_number", element.name, values["number"], entity
        yield "element_of_number", values["number"], element.name, entity
        yield "atomic_mass", element.name, values.get("mass", ""), entity
        yield "covalent_radius", element.name, values.get("radius", ""), entity


BUILDER = FactsQa
