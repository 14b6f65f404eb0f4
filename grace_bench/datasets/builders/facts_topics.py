"""`facts_topics`: short texts to be sorted into classes that were redefined (the SCOTUS role).

A text is one to three sentences of facts about a country or an element. Its label is the part of
the world, or of the periodic table, to which the entity belongs; the text does not name it.
`train` and `upstream` follow an older labelling. In `edits` some subgroups have moved to another
class, as when a court's topics are redefined, and the others stay: an editor must learn the move
without changing what stayed. Classes and rules are our own and claim no authority. Entities are
split between the roles; a fact is an entity.

- train: texts of the taught entities with their older labels; both partitions share it, hence the
  base model.
- upstream: new texts of those taught entities whose label did not move; never edited. (A base
  model is right about only two in three entities it was not taught: too few to see forgetting.)
- edits: texts of the stream's entities with their newer labels: one text of each entity, then the
  next text of each, and so on.
- holdout: other texts of the same entities, with the newer labels.
- accurate: empty; the paper measures ARR on its hallucination task only.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from dataclasses import dataclass

from pydantic import Field

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import PartitionedOptions
from grace_bench.datasets.reading.fields import Row, row_of
from grace_bench.datasets.reading.files import load_templates
from grace_bench.datasets.sources import installed
from grace_bench.errors import DataError

_SHARES = {
    True: {"train": 0.34, "test": 0.45, "development": 0.21},
    False: {"train": 0.60, "test": 0.28, "development": 0.12},
}
"""How the entities that moved (True) and the others are divided among the groups."""

_UPSTREAM_TEST_SHARE = 2 / 3
_SIZES = {1: 1, 2: 4, 3: 2}
"""Sentences per text to their relative frequency."""


class FactsTopicsOptions(PartitionedOptions):
    """Options of `facts_topics`."""

    train_texts: int = Field(default=4, ge=1, le=8, description="Texts per entity in `train`.")
    upstream_texts: int = Field(
        default=3, ge=1, le=8, description="Texts per entity in `upstream`."
    )
    edit_texts: int = Field(default=4, ge=1, le=6, description="Texts per entity in `edits`.")
    holdout_texts: int = Field(
        default=3, ge=0, le=6, description="Other texts of the same entities, in `holdout`."
    )
    max_words: int = Field(
        default=26, ge=10, description="Longer texts are dropped, to stay within 48 word pieces."
    )


@dataclass(frozen=True, eq=False)
class Entity(installed.Subject):
    """A country or an element with its class in the older and in the newer labelling."""

    old: str
    new: str

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
        taught, edited = options.train_texts, options.edit_texts
        needed = max(taught + options.upstream_texts, edited + options.holdout_texts)
        texts: dict[Entity, list[str]] = {}
        for entity in topic_entities(dropped):
            own = self._texts(entity, needed, dropped)
            if len(own) == needed:
                texts[entity] = own
            else:
                dropped["entity with too few facts"] += 1
        groups = self._split(list(texts))
        stayed = [entity for entity in groups["train"] if not entity.moved]
        cut = round(_UPSTREAM_TEST_SHARE * len(stayed))
        retained = options.share(stayed, cut, len(stayed) - cut)
        stream = groups[options.partition]

        def rows(role: str, entities: list[Entity], start: int, stop: int) -> list[Row]:
            """One row per text number and entity, number by number."""
            return [
                row_of(
                    role,
                    f"{entity.fact_id}/{number}",
                    entity.fact_id,
                    texts[entity][number],
                    entity.old if role in ("train", "upstream") else entity.new,
                    entity.name,
                    "moved" if entity.moved else "stayed",
                )
                for number in range(start, stop)
                for entity in entities
            ]

        return BuiltDataset(
            roles={
                "train": rows("train", groups["train"], 0, taught),
                "upstream": rows("upstream", retained, taught, taught + options.upstream_texts),
                "edits": rows("edits", stream, 0, edited),
                "holdout": rows("holdout", stream, edited, edited + options.holdout_texts),
            },
            sources=installed.sources_of("countryinfo", "periodictable"),
            dropped=dropped,
            labels=list(load_templates("facts_topics")["classes"]),
        )

    def _split(self, entities: list[Entity]) -> dict[str, list[Entity]]:
        """Divide the entities of every move in fixed shares, so that each group has some."""
        strata: dict[tuple[str, str], list[Entity]] = defaultdict(list)
        for entity in entities:
            strata[entity.old, entity.new].append(entity)
        groups: dict[str, list[Entity]] = {group: [] for group in _SHARES[True]}
        for (old, new), members in sorted(strata.items()):
            self.rng(f"split/{old}/{new}").shuffle(members)
            start, total = 0, 0.0
            for group, share in _SHARES[old != new].items():
                total += share
                end = round(total * len(members))
                groups[group] += members[start:end]
                start = end
        for group, members in groups.items():
            if not members:
                raise DataError(
                    f"{self.name}: no entities are left for '{group}'; lower the texts per entity "
                    "or raise max_words."
                )
            self.rng(f"order/{group}").shuffle(members)
        return groups

    def _texts(self, entity: Entity, count: int, dropped: Counter[str]) -> list[str]:
        """Return up to `count` texts, each made of a different set of facts."""
        rng = self.rng(f"texts/{entity.fact_id}")
        templates = load_templates("facts_topics")
        sentences = templates["sentences"][entity.kind]
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
            elif any(label.casefold() in text.casefold() for label in templates["classes"]):
                dropped["text that names a class"] += 1
            else:
                texts.append(text)
        return texts


def topic_entities(dropped: Counter[str]) -> list[Entity]:
    """Return all countries and elements with both labels, by identity."""
    countries = installed.countries(dropped)
    names = {country.code: country.name for country in countries}
    entities = []
    for country in countries:
        labels = country_labels(country)
        if labels is None:
            dropped["country without a region"] += 1
            continue
        facts = {}
        for fact in load_templates("facts_topics")["sentences"]["country"]:
            value = country.only(fact)
            if value is not None and value != country.name:
                facts[fact] = value
        facts |= _listed("neighbours", sorted(names[c] for c in country.neighbours if c in names))
        facts |= _listed("provinces", [p for p in country.provinces if p != country.name])
        entities.append(Entity(f"country:{country.code}", country.name, "country", facts, *labels))
    elements = installed.elements()
    for before, element, after in zip(
        [None, *elements[:-1]], elements, [*elements[1:], None], strict=True
    ):
        facts = dict(element.values)
        if before and after:
            facts["neighbours"] = f"{before.name} and {after.name}"
        if element.ions:
            facts["ions"] = _joined([f"{charge:+d}" for charge in element.ions][-3:])
        fact_id, labels = f"element:{element.symbol}", element_labels(element.number)
        entities.append(Entity(fact_id, element.name, "element", facts, *labels))
    return sorted(entities, key=lambda entity: entity.fact_id)


def country_labels(country: installed.Country) -> tuple[str, str] | None:
    """Return a country's class in the older and in the newer labelling; None without a region.

    Three regions move as a whole (`moved_regions`). The countries of Western Asia where Arabic is
    not spoken move to Eastern and Southern Europe, and those of Eastern and Southern Europe that
    pay in euros move to Northern and Western Europe.
    """
    tables = load_templates("facts_topics")
    _, subregion, intermediate = country.regions
    old = tables["intermediate_regions"].get(intermediate) or tables["subregions"].get(subregion)
    if old is None:
        return None
    new = tables["moved_regions"].get(intermediate or subregion, old)
    if subregion == "Western Asia" and "ar" not in country.languages:
        new = "Eastern and Southern Europe"
    elif old == "Eastern and Southern Europe" and "EUR" in country.values["currency"]:
        new = "Northern and Western Europe"
    return old, new


def element_labels(number: int) -> tuple[str, str]:
    """Return an element's class in the older and in the newer labelling.

    The actinides move to the d-block, where chemists had them until 1945, and the groups of copper
    and zinc, whose d shells are full, move to the p-block.
    """
    if 89 <= number <= 102:
        return "f-block element", "d-block element"
    if number in {29, 30, 47, 48, 79, 80, 111, 112}:
        return "d-block element", "p-block element"
    if number in {1, 2, 3, 4, 11, 12, 19, 20, 37, 38, 55, 56, 87, 88}:
        block = "s"
    elif 57 <= number <= 70:
        block = "f"
    else:
        block = "d" if any(start <= number < start + 10 for start in (21, 39, 71, 103)) else "p"
    return f"{block}-block element", f"{block}-block element"


def _listed(fact: str, values: list[str]) -> dict[str, str]:
    if len(values) < 2:
        return {}
    chosen = random.Random(f"{fact}/{values}").sample(values, 2)
    return {fact: _joined(chosen)}


def _joined(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} and {values[-1]}"


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


BUILDER = FactsTopics
