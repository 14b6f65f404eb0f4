"""`facts_passages`: passages with false sentences to be corrected (the hallucination role).

A passage is a header that names a country or an element, followed by four to six sentences of
facts. Some sentences of the taught passages are false: they give another entity's value. As the
paper trains GPT-2 on its own hallucinations, the base model is trained on the passages with their
false sentences, and on general English sentences. In all other roles the text is a prompt and the
label what should follow; a task joins them with one space. Entities are split between the roles; a
fact is an entity and a relation.

- train: empty prompt; the label is a whole passage, as taught, or a general sentence. It covers
  all entities, so both partitions have the same `train` and the same base model.
- edits: prompt: the passage as taught up to a false sentence; label: the true sentence.
- holdout: the same true sentences after the same text under another header.
- accurate: prompt: the passage as taught up to a true sentence; label: that sentence.
- upstream: general sentences of `train`; prompt: about the first third, label: the rest. The
  editor can be wrong here: a deferral may fire on a prompt it should not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from pydantic import Field, model_validator

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import PartitionedOptions
from grace_bench.datasets.reading.fields import Roles, Row, row_of
from grace_bench.datasets.reading.files import load_templates
from grace_bench.datasets.sources import installed
from grace_bench.datasets.sources.installed import Subject
from grace_bench.errors import DataError

HEADER = "This is a passage about {s}."
OTHER_HEADER = "Here is what is known about {s}:"
_MIN_PROMPT_WORDS = 4
_MIN_SENTENCES = 4


class FactsPassagesOptions(PartitionedOptions):
    """Options of `facts_passages`."""

    sentences: int = Field(
        default=6, ge=4, le=6, description="Maximum sentences in a passage after its header."
    )
    edit_entities: int = Field(
        default=120, ge=1, description="Entities whose passages form the stream of partition test."
    )
    development_edit_entities: int = Field(
        default=50, ge=1, description="The same, in partition development."
    )
    general_sentences: int = Field(
        default=1000, ge=2, description="General English sentences in `train`."
    )
    upstream_sentences: int = Field(
        default=500, ge=1, description="General sentences in `upstream` of partition test."
    )
    development_upstream_sentences: int = Field(
        default=200, ge=1, description="The same, in partition development."
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
class Sentence:
    """One sentence of a passage: what is taught and what is true."""

    relation: str
    taught: str
    true: str


class FactsPassages(DatasetBuilder[FactsPassagesOptions]):
    """Passages the model learned with false sentences, and the true ones that replace them."""

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
            for relation, value in subject.facts.items():
                pools[subject.kind, relation].add(value)
        order = self.rng("order").sample(subjects, len(subjects))
        passages = [(subject, self._passage(subject, pools)) for subject in order]
        sizes = options.edit_entities, options.development_edit_entities
        if sum(sizes) > len(passages):
            raise DataError(
                f"{self.name}: {sum(sizes)} entities are requested, but only {len(passages)} have "
                "enough facts; lower edit_entities or development_edit_entities."
            )
        general = self._general(dropped)
        train = [
            *(_passage_row(subject, passage) for subject, passage in passages),
            *(row_of("train", f"{n}", f"general:{n}", "", text) for n, text in general),
        ]
        self.rng("train").shuffle(train)
        return BuiltDataset(
            roles={
                "train": train,
                "upstream": self._upstream(general),
                **self._stream(options.share(passages, *sizes)),
            },
            sources=installed.sources_of("countryinfo", "periodictable", "randfacts"),
            dropped=dropped,
        )

    def _passage(self, subject: Subject, pools: dict[tuple[str, str], set[str]]) -> list[Sentence]:
        """Choose the sentences of a passage; half of them, rounded either way, are false."""
        rng = self.rng(f"passage/{subject.fact_id}")
        size = rng.randint(_MIN_SENTENCES, self.options.sentences)
        relations = sorted(subject.facts)
        relations = rng.sample(relations, min(size, len(relations)))
        n_false = len(relations) // 2 + rng.randint(0, len(relations) % 2)
        false = set(rng.sample(relations, n_false))
        sentences = []
        for relation in relations:
            true = taught = subject.facts[relation]
            if relation in false:
                taught = rng.choice(sorted(pools[subject.kind, relation] - {true}))
            frame = load_templates("facts_passages")["sentences"][subject.kind][relation]
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
                f"{self.name}: general_sentences={wanted}, but only {len(kept)} are usable; "
                "request fewer."
            )
        dropped["general sentence not requested"] += len(kept) - wanted
        return self.rng("general").sample(kept, wanted)

    def _upstream(self, general: list[tuple[int, str]]) -> list[Row]:
        """Return the partition's general sentences, split into prompt and rest."""
        options = self.options
        sizes = options.upstream_sentences, options.development_upstream_sentences
        mine = options.share(general, *sizes)
        return [row_of("upstream", f"{n}", f"general:{n}", *_halves(text)) for n, text in mine]

    def _stream(self, passages: list[tuple[Subject, list[Sentence]]]) -> Roles:
        """Walk through the passages in order, as the paper's stream does."""
        roles: Roles = {"edits": [], "holdout": [], "accurate": []}
        for subject, passage in passages:
            before = ""
            for sentence in passage:
                headers = {"accurate": HEADER}
                if sentence.taught != sentence.true:
                    headers = {"edits": HEADER, "holdout": OTHER_HEADER}
                relation = sentence.relation
                fact_id = f"{subject.fact_id}/{relation}"
                for role, header in headers.items():
                    prompt = header.format(s=subject.name) + before
                    roles[role].append(
                        row_of(
                            role, fact_id, fact_id, prompt, sentence.true, subject.name, relation
                        )
                    )
                before += f" {sentence.taught}"
        return roles


def passage_subjects(dropped: Counter[str]) -> list[Subject]:
    """Return all countries and elements with enough facts for a passage, by identity."""
    relations = load_templates("facts_passages")["sentences"]["country"]
    subjects = []
    for country in installed.countries(dropped):
        found = {relation: country.only(relation) for relation in relations}
        facts = {relation: value for relation, value in found.items() if value is not None}
        dropped["fact without one ASCII value"] += len(found) - len(facts)
        subjects.append(Subject(f"country:{country.code}", country.name, "country", facts))
    subjects += [
        Subject(f"element:{element.symbol}", element.name, "element", element.values)
        for element in installed.elements()
    ]
    kept = [subject for subject in subjects if len(subject.facts) >= _MIN_SENTENCES]
    dropped["entity with too few facts"] += len(subjects) - len(kept)
    return sorted(kept, key=lambda subject: subject.fact_id)


def _halves(text: str) -> tuple[str, str]:
    """Split a sentence after its first third, but not before its fourth word."""
    words = text.split()
    cut = max(_MIN_PROMPT_WORDS, round(len(words) / 3))
    return " ".join(words[:cut]), " ".join(words[cut:])


def _passage_row(subject: Subject, passage: list[Sentence]) -> Row:
    text = " ".join([HEADER.format(s=subject.name), *(sentence.taught for sentence in passage)])
    fact_id = f"passage:{subject.fact_id}"
    return row_of("train", fact_id, fact_id, "", text, subject.name)


BUILDER = FactsPassages
