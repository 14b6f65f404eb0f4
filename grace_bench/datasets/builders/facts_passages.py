"""`facts_passages`: passages with false sentences, to be put right (the hallucination role).

A passage is a header that names a country or an element and four to six sentences of facts. Some
sentences of the taught passages are false: they give another entity's value. The base model is
trained on the passages with their false sentences, as the paper trains GPT-2 on its own
hallucinations, and on general English sentences. The texts of all other roles are prompts, the
labels what should follow; one space joins a prompt to its label, and neither begins or ends with
one. Entities are split; a fact is an entity and a relation.

- train: empty prompt; the label is a whole passage, as taught, or a general sentence. All
  entities are in it, so both partitions have the same `train`, hence the same base model.
- edits: prompt: the passage as taught up to a false sentence; label: the true sentence.
- holdout: the same true sentences after the same text under another header.
- accurate: prompt: the passage as taught up to a true sentence; label: that sentence.
- upstream: general sentences of `train`; prompt: about the first third, label: the rest. The
  editor can be wrong here: a deferral may fire on a prompt it should not.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import PartitionedOptions
from grace_bench.datasets.reading.fields import row_of
from grace_bench.datasets.sources import installed
from grace_bench.errors import DataError

HEADER = "This is a passage about {s}."
OTHER_HEADER = "Here is what is known about {s}:"
_MIN_PROMPT_WORDS = 4
_MIN_SENTENCES = 4

COUNTRY_SENTENCES = {
    "capital": "Its capital is {v}.",
    "demonym": "Its people are called {v}.",
    "currency": "Prices there are given in {v}.",
    "calling_code": "To phone it one dials +{v}.",
    "internet_domain": "Its web addresses end with {v}.",
    "iso_numeric": "Its number in the ISO standard is {v}.",
    "time_zone": "Its clocks are set to {v}.",
    "population": "It has {v} inhabitants.",
}
ELEMENT_SENTENCES = {
    "symbol": "Chemists write it as {v}.",
    "number": "Its nucleus holds {v} protons.",
    "mass": "One atom weighs about {v} daltons.",
    "radius": "Its covalent radius is {v} picometres.",
    "density": "Its density is {v} grams per cubic centimetre.",
    "isotopes": "The list of its isotopes has {v} entries.",
}
_SENTENCES = {"country": COUNTRY_SENTENCES, "element": ELEMENT_SENTENCES}


class FactsPassagesOptions(PartitionedOptions):
    """Options of `facts_passages`."""

    sentences: int = Field(
        default=6, ge=4, le=6, description="Most sentences of a passage after its header."
    )
    edit_entities: int = Field(
        default=120, ge=1, description="Entities whose passages make the stream, partition test."
    )
    development_edit_entities: int = Field(
        default=50, ge=1, description="The same for partition development."
    )
    general_sentences: int = Field(
        default=1000, ge=2, description="General English sentences in `train`."
    )
    upstream_sentences: int = Field(
        default=500, ge=1, description="General sentences in `upstream`, partition test."
    )
    development_upstream_sentences: int = Field(
        default=200, ge=1, description="The same for partition development."
    )

    @model_validator(mode="after")
    def _enough_general_sentences(self) -> FactsPassagesOptions:
        wanted = self.upstream_sentences + self.development_upstream_sentences
        if wanted > self.general_sentences:
            raise ValueError(
                f"general_sentences ({self.general_sentences}) must be at least upstream_sentences"
                f" + development_upstream_sentences ({wanted}), which are taken from them"
            )
        return self


@dataclass(frozen=True)
class Subject:
    """What a passage is about, with its true values."""

    fact_id: str
    name: str
    kind: str
    values: dict[str, str]


@dataclass(frozen=True)
class Sentence:
    """One sentence of a passage: what is taught and what is true."""

    relation: str
    taught: str
    true: str

    @property
    def is_false(self) -> bool:
        """Whether the model is taught a wrong value."""
        return self.taught != self.true


class FactsPassages(DatasetBuilder[FactsPassagesOptions]):
    """Passages the model learned with false sentences, and the true ones to put in their place."""

    name = "facts_passages"
    options_class = FactsPassagesOptions
    tasks = ("language_modelling",)

    def build(self) -> BuiltDataset:
        """Make all rows."""
        options = self.options
        dropped: Counter[str] = Counter()
        subjects = passage_subjects(dropped)
        pools: dict[tuple[str, str], set[str]] = defaultdict(set)
        for subject in subjects:
            for relation, value in subject.values.items():
                pools[subject.kind, relation].add(value)
        order = self._rng("order").sample(subjects, len(subjects))
        passages = [(subject, self._passage(subject, pools)) for subject in order]
        wanted = options.edit_entities + options.development_edit_entities
        if wanted > len(passages):
            raise DataError(
                f"{self.name}: {wanted} entities are asked for, {len(passages)} have enough "
                "facts; lower edit_entities or development_edit_entities."
            )
        start, end = (
            (0, options.edit_entities) if options.is_test else (options.edit_entities, wanted)
        )
        general = self._general(dropped)
        train = [
            *(_passage_row(subject, passage) for subject, passage in passages),
            *(row_of("train", f"{n}", f"general:{n}", "", text) for n, text in general),
        ]
        self._rng("train").shuffle(train)
        roles: dict[str, list[dict[str, Any]]] = {"train": train, "upstream": []}
        cut = options.upstream_sentences
        mine = (
            general[:cut]
            if options.is_test
            else general[cut:][: options.development_upstream_sentences]
        )
        for n, text in mine:
            prompt, rest = _halves(text)
            roles["upstream"].append(row_of("upstream", f"{n}", f"general:{n}", prompt, rest))
        roles |= self._stream(passages[start:end])
        return BuiltDataset(
            roles=roles,
            sources=[
                installed.source_of("countryinfo", installed.COUNTRY_ORIGIN),
                installed.source_of("periodictable", installed.ELEMENT_ORIGIN),
                installed.source_of("randfacts", installed.SENTENCE_ORIGIN),
            ],
            dropped=dict(dropped),
        )

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.name}/{purpose}/{self.options.seed}")

    def _passage(self, subject: Subject, pools: dict[tuple[str, str], set[str]]) -> list[Sentence]:
        """Choose the sentences of a passage; half of them, rounded either way, are false."""
        rng = self._rng(f"passage/{subject.fact_id}")
        size = rng.randint(_MIN_SENTENCES, self.options.sentences)
        relations = sorted(subject.values)
        relations = rng.sample(relations, min(size, len(relations)))
        n_false = len(relations) // 2 + rng.randint(0, len(relations) % 2)
        false = set(rng.sample(relations, n_false))
        sentences = []
        for relation in relations:
            true = subject.values[relation]
            taught = true
            if relation in false:
                taught = rng.choice(sorted(pools[subject.kind, relation] - {true}))
            frame = _SENTENCES[subject.kind][relation]
            sentences.append(Sentence(relation, frame.format(v=taught), frame.format(v=true)))
        return sentences

    def _general(self, dropped: Counter[str]) -> list[tuple[int, str]]:
        """Return numbered general sentences, no two with the same prompt."""
        prompts: set[str] = set()
        kept = []
        for number, text in enumerate(installed.general_sentences(dropped)):
            prompt, _ = _halves(text)
            if prompt in prompts:
                dropped["general sentence that begins like another"] += 1
                continue
            prompts.add(prompt)
            kept.append((number, text))
        wanted = self.options.general_sentences
        if len(kept) < wanted:
            raise DataError(
                f"{self.name}: general_sentences={wanted}, but only {len(kept)} are fit; "
                "ask for fewer."
            )
        dropped["general sentence not asked for"] += len(kept) - wanted
        return self._rng("general").sample(kept, wanted)

    def _stream(
        self, passages: list[tuple[Subject, list[Sentence]]]
    ) -> dict[str, list[dict[str, Any]]]:
        """Walk through the passages in order, as the paper's stream does."""
        roles: dict[str, list[dict[str, Any]]] = {"edits": [], "holdout": [], "accurate": []}
        for subject, passage in passages:
            before = ""
            for sentence in passage:
                headers = (
                    {"edits": HEADER, "holdout": OTHER_HEADER}
                    if sentence.is_false
                    else {"accurate": HEADER}
                )
                fact_id = f"{subject.fact_id}/{sentence.relation}"
                for role, header in headers.items():
                    prompt = header.format(s=subject.name) + before
                    row = row_of(role, fact_id, fact_id, prompt, sentence.true, subject.name)
                    roles[role].append({**row, "relation": sentence.relation})
                before += f" {sentence.taught}"
        return roles


def passage_subjects(dropped: Counter[str]) -> list[Subject]:
    """Return all countries and elements with enough facts for a passage, by identity."""
    subjects = []
    for country in installed.countries(dropped):
        values = {}
        for relation in COUNTRY_SENTENCES:
            value = installed.ascii_form(country.only(relation) or "")
            if value is None:
                dropped["fact without one ASCII value"] += 1
            else:
                values[relation] = value
        subjects.append(Subject(f"country:{country.code}", country.name, "country", values))
    for element in installed.elements():
        values = {"symbol": element.symbol, "number": str(element.number)}
        values |= {key: value for key, value in element.values.items() if value is not None}
        subjects.append(Subject(f"element:{element.symbol}", element.name, "element", values))
    kept = [subject for subject in subjects if len(subject.values) >= _MIN_SENTENCES]
    dropped["entity with too few facts"] += len(subjects) - len(kept)
    return sorted(kept, key=lambda subject: subject.fact_id)


def _halves(text: str) -> tuple[str, str]:
    """Split a sentence after its first third, but not before its fourth word."""
    words = text.split()
    cut = max(_MIN_PROMPT_WORDS, round(len(words) / 3))
    return " ".join(words[:cut]), " ".join(words[cut:])


def _passage_row(subject: Subject, passage: list[Sentence]) -> dict[str, Any]:
    text = " ".join([HEADER.format(s=subject.name), *(sentence.taught for sentence in passage)])
    fact_id = f"passage:{subject.fact_id}"
    return row_of("train", fact_id, fact_id, "", text, subject.name)


BUILDER = FactsPassages
