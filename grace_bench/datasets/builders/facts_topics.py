"""`facts_topics`: short texts about an entity, to be sorted into classes that moved (SCOTUS role).

A text is one to three sentences of facts about a country or an element. Its label is the part of
the world or of the periodic table the entity belongs to, which the text does not name. `train`
and `upstream` follow an older labelling; in `edits` some subgroups have moved to another class
(see sources/topic_classes.py) and the others keep theirs, so that an editor must learn the move
without dragging along what stayed. Entities are split, and a fact is an entity.

- train: texts of the taught entities, moved subgroups among them, with their older labels. The
  same for both partitions, hence the same base model.
- upstream: new texts, none of them in `train`, of those taught entities whose label did not move;
  they are never edited. (Of entities it was not taught about the base model gets only some two
  in three right, too few to see forgetting.)
- edits: texts of the stream's entities with their newer labels, round after round: first one
  text of each entity, then the next one.
- holdout: other texts of the same entities, with the newer labels.
- accurate: empty; the paper measures ARR on its hallucination task only.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import PartitionedOptions
from grace_bench.datasets.sources import installed
from grace_bench.datasets.sources.topic_classes import CLASSES, country_classes, element_classes
from grace_bench.errors import DataError

_SHARES = {
    True: {"train": 0.34, "test": 0.45, "development": 0.21},
    False: {"train": 0.60, "test": 0.28, "development": 0.12},
}
"""How the entities that moved (True) and the others are dealt to the groups."""

_UPSTREAM_TEST_SHARE = 2 / 3
_SIZES = {1: 1, 2: 4, 3: 2}
"""Sentences in a text, and how often relative to each other."""

COUNTRY_SENTENCES: dict[str, tuple[str, str]] = {
    "capital": ("The capital of {s} is {v}.", "{s} is governed from {v}."),
    "neighbours": ("{s} borders {v}.", "Among the neighbours of {s} one finds {v}."),
    "demonym": ("People from {s} are called {v}.", "Citizens of {s} are known as {v}."),
    "provinces": ("{v} are parts of {s}.", "{s} is divided into areas such as {v}."),
    "currency": ("Prices in {s} are given in {v}.", "The money of {s} has the code {v}."),
    "calling_code": ("To phone {s} one dials +{v}.", "Telephones in {s} answer to +{v}."),
    "time_zone": ("Clocks in {s} are set to {v}.", "{s} keeps the time of {v}."),
    "italian_name": ("Italians call {s} {v}.", "In Italian {s} is known as {v}."),
}
ELEMENT_SENTENCES: dict[str, tuple[str, str]] = {
    "symbol": ("The symbol of {s} is {v}.", "Chemists write {v} for {s}."),
    "number": ("The atomic number of {s} is {v}.", "A {s} nucleus holds {v} protons."),
    "neighbours": (
        "In the periodic table {s} stands between {v}.",
        "The places beside {s} are taken by {v}.",
    ),
    "mass": ("An atom of {s} weighs about {v} daltons.", "The atomic mass of {s} is near {v}."),
    "radius": ("The covalent radius of {s} is {v} pm.", "In bonds {s} measures {v} pm."),
    "ions": ("{s} forms ions of charge {v}.", "Ions of {s} are known with charge {v}."),
    "density": ("A cubic centimetre of {s} weighs {v} g.", "The density of {s} is {v}."),
    "isotopes": ("The list of {s} isotopes has {v} entries.", "Isotopes of {s} on record: {v}."),
}


class FactsTopicsOptions(PartitionedOptions):
    """Options of `facts_topics`."""

    train_texts: int = Field(default=4, ge=1, le=8, description="Texts of an entity in `train`.")
    upstream_texts: int = Field(
        default=3, ge=1, le=8, description="Texts of an entity in `upstream`."
    )
    edit_texts: int = Field(default=4, ge=1, le=6, description="Texts of an entity in `edits`.")
    holdout_texts: int = Field(
        default=3, ge=0, le=6, description="Other texts of the same entities, in `holdout`."
    )
    max_words: int = Field(
        default=26, ge=10, description="Longer texts are dropped, to stay within 48 word pieces."
    )


@dataclass(frozen=True)
class Entity:
    """A country or an element with its two labels and the facts its texts are made of."""

    fact_id: str
    name: str
    kind: str
    old: str
    new: str
    facts: dict[str, str]

    @property
    def moved(self) -> bool:
        """Whether the newer labelling puts the entity elsewhere."""
        return self.old != self.new


class FactsTopics(DatasetBuilder[FactsTopicsOptions]):
    """Texts about entities whose classes were redefined after the base model was trained."""

    name = "facts_topics"
    options_class = FactsTopicsOptions
    tasks = ("classification",)

    def build(self) -> BuiltDataset:
        """Make all rows."""
        options = self.options
        dropped: Counter[str] = Counter()
        needed = max(
            options.train_texts + options.upstream_texts,
            options.edit_texts + options.holdout_texts,
        )
        texts: dict[str, list[str]] = {}
        entities = []
        for entity in topic_entities(dropped):
            own = self._texts(entity, needed, dropped)
            if len(own) < needed:
                dropped["entity with too few facts"] += 1
                continue
            texts[entity.fact_id] = own
            entities.append(entity)
        groups = self._split(entities)
        partition = options.partition
        stayed = [entity for entity in groups["train"] if not entity.moved]
        cut = round(_UPSTREAM_TEST_SHARE * len(stayed))
        retained = stayed[:cut] if options.is_test else stayed[cut:]
        start = options.train_texts
        return BuiltDataset(
            roles={
                "train": _rows("train", groups["train"], texts, range(start), new=False),
                "upstream": _rows(
                    "upstream",
                    retained,
                    texts,
                    range(start, start + options.upstream_texts),
                    new=False,
                ),
                "edits": _rows("edits", groups[partition], texts, range(options.edit_texts)),
                "holdout": _rows(
                    "holdout",
                    groups[partition],
                    texts,
                    range(options.edit_texts, options.edit_texts + options.holdout_texts),
                ),
            },
            sources=[
                installed.source_of("countryinfo", installed.COUNTRY_ORIGIN),
                installed.source_of("periodictable", installed.ELEMENT_ORIGIN),
            ],
            dropped=dict(dropped),
            labels=list(CLASSES),
        )

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.name}/{purpose}/{self.options.seed}")

    def _split(self, entities: list[Entity]) -> dict[str, list[Entity]]:
        """Deal the entities of every kind of move in fixed shares, so that all groups have some."""
        strata: dict[tuple[str, str], list[Entity]] = defaultdict(list)
        for entity in entities:
            strata[entity.old, entity.new].append(entity)
        groups: dict[str, list[Entity]] = {group: [] for group in _SHARES[True]}
        for (old, new), members in sorted(strata.items()):
            self._rng(f"split/{old}/{new}").shuffle(members)
            start, total = 0, 0.0
            for group, share in _SHARES[old != new].items():
                total += share
                end = round(total * len(members))
                groups[group] += members[start:end]
                start = end
        for group, members in groups.items():
            if not members:
                raise DataError(f"{self.name}: no entities are left for '{group}'; allow more.")
            self._rng(f"order/{group}").shuffle(members)
        return groups

    def _texts(self, entity: Entity, count: int, dropped: Counter[str]) -> list[str]:
        """Return up to `count` texts, no two of which are made of the same facts."""
        rng = self._rng(f"texts/{entity.fact_id}")
        sentences = COUNTRY_SENTENCES if entity.kind == "country" else ELEMENT_SENTENCES
        choices = {}
        for size in _SIZES:
            choices[size] = list(itertools.combinations(sorted(entity.facts), size))
            rng.shuffle(choices[size])
        texts: list[str] = []
        while len(texts) < count:
            sizes = [size for size in _SIZES if choices[size]]
            if not sizes:
                break
            size = rng.choices(sizes, [_SIZES[size] for size in sizes])[0]
            facts = choices[size].pop()
            text = " ".join(
                _capitalised(rng.choice(sentences[f]).format(s=entity.name, v=entity.facts[f]))
                for f in rng.sample(facts, size)
            )
            if len(text.split()) > self.options.max_words:
                dropped["text too long"] += 1
            elif any(label.casefold() in text.casefold() for label in CLASSES):
                dropped["text that names a class"] += 1
            else:
                texts.append(text)
        return texts


def topic_entities(dropped: Counter[str]) -> list[Entity]:
    """Return all countries and elements with both labels, by identity."""
    entities = []
    countries = installed.countries(dropped)
    names = {country.code: country.name for country in countries}
    for country in countries:
        classes = country_classes(country)
        if classes is None:
            dropped["country without a region"] += 1
            continue
        facts = {}
        for fact in COUNTRY_SENTENCES:
            value = (
                installed.ascii_form(country.only(fact) or "") if fact in country.values else None
            )
            if value is not None and value != country.name:
                facts[fact] = value
        facts |= _listed("neighbours", sorted(names[c] for c in country.neighbours if c in names))
        facts |= _listed("provinces", [p for p in country.provinces if p != country.name])
        entities.append(Entity(f"country:{country.code}", country.name, "country", *classes, facts))
    elements = installed.elements()
    for before, element, after in zip(
        [None, *elements[:-1]], elements, [*elements[1:], None], strict=True
    ):
        facts = {"symbol": element.symbol, "number": str(element.number)}
        facts |= {fact: value for fact, value in element.values.items() if value is not None}
        if before and after:
            facts["neighbours"] = f"{before.name} and {after.name}"
        if element.ions:
            facts["ions"] = _joined([f"{charge:+d}" for charge in element.ions][-3:])
        classes = element_classes(element)
        entities.append(
            Entity(f"element:{element.symbol}", element.name, "element", *classes, facts)
        )
    return sorted(entities, key=lambda entity: entity.fact_id)


def _listed(fact: str, values: list[str]) -> dict[str, str]:
    if len(values) < 2:
        return {}
    chosen = random.Random(f"{fact}/{values}").sample(values, 2)
    return {fact: _joined(chosen)}


def _joined(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} and {values[-1]}"


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _rows(
    role: str,
    entities: list[Entity],
    texts: dict[str, list[str]],
    numbers: range,
    *,
    new: bool = True,
) -> list[dict[str, Any]]:
    """Return one row per text number and entity, number by number."""
    return [
        {
            "example_id": f"{role}/{entity.fact_id}/{number}",
            "fact_id": entity.fact_id,
            "text": texts[entity.fact_id][number],
            "label": entity.new if new else entity.old,
            "subject": entity.name,
            "relation": "moved" if entity.moved else "stayed",
        }
        for number in numbers
        for entity in entities
    ]


BUILDER = FactsTopics
