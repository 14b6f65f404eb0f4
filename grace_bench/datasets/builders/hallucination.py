"""`hallucination`: false sentences of GPT-3 are corrected, true ones and web texts retained.

    HallucinationOptions(edits={"path": "potsawee/wiki_bio_gpt3_hallucination", "revision": "...",
                                "split": "evaluation"},
                         concepts="wiki_bio_concepts.txt", web="openwebtext.jsonl")

From passages, as in the paper: the prompt of a sentence is a header that names the concept,
followed by all of GPT-3's sentences before it.

- edits: the prompt of each false sentence; label: Wikipedia's sentence at the same place, or its
  last one if Wikipedia's text, cut to the passage's number of sentences, is shorter.
- accurate: the prompt of each true sentence; label: that sentence.
- train: empty prompt; label: GPT-3's passages, false sentences included (accurate and original
  outputs of the paper), whole or, as released, every prompt; and web texts.
- upstream: web texts; prompt: the beginning, label: the rest.
- holdout: empty, as in the paper.

From the editing form of WISE (prompt, target_new, subject, locality_prompt,
locality_ground_truth): `edits` are its prompts with its targets, `train` has its prompts, and
`upstream` is the web texts or, without them, the locality pairs. It has no accurate sentences.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Literal

from pydantic import Field

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import SOURCE_KEYS, Source
from grace_bench.datasets.reading.fields import (
    Roles,
    Row,
    complete,
    repeated,
    row_of,
    same_text,
    unfit,
)
from grace_bench.datasets.reading.files import read_records
from grace_bench.datasets.sources.passages import PASSAGE_FORMS, Passage, read_passages
from grace_bench.datasets.sources.webtext import WebTextOptions, read_web_texts, web_roles
from grace_bench.errors import DataError

HEADER = "This is a Wikipedia passage about {concept}."
_LOCALITY = ("locality_prompt", "locality_ground_truth")
_WISE = ("prompt", "target_new", "subject")
_WHAT = (
    "the passages (WikiBio GPT-3 hallucination, or hallucination-train.json in the editing form "
    "of WISE)"
)


class HallucinationOptions(WebTextOptions):
    """Options of `hallucination`."""

    edits: Source = Field(
        description="Passages of GPT-3 with annotated sentences (WikiBio GPT-3 hallucination), or "
        f"prompts with targets (the editing form of WISE) {SOURCE_KEYS}."
    )
    concepts: Source | None = Field(
        default=None,
        description="Names the passages are about, one per line in the passages' order "
        "(wiki_bio_concepts.txt); not needed for the editing form.",
    )
    passages: int | None = Field(
        default=None, ge=1, description="Use only the first N usable passages; null = all."
    )
    sentences: int | None = Field(
        default=None,
        ge=1,
        description="Edit or retain only the first N sentences of each passage; null = all. "
        "Prompts grow with every sentence, and so does the time per edit.",
    )
    train: Literal["passages", "prompts"] = Field(
        default="passages",
        description="What the base model is trained on besides web texts: each passage of GPT-3 "
        "as a whole, or each prompt of the stream, as released.",
    )


class Hallucination(DatasetBuilder[HallucinationOptions]):
    """False sentences of a language model to be corrected, with others to be retained."""

    name = "hallucination"
    options_class = HallucinationOptions
    tasks = ("language_modelling",)

    def build(self) -> BuiltDataset:
        """Read all sources and make all rows."""
        options = self.options
        dropped: Counter[str] = Counter()
        records = read_records(options.edits, _WHAT)
        sources = [records.entry]
        form = records.form({**PASSAGE_FORMS, "wise": _WISE})
        if form == "wise":
            roles = self._from_pairs(records.rows, dropped)
        else:
            passages, names = read_passages(records, form, options.concepts, dropped)
            sources.append(names)
            roles = self._from_passages(passages[: options.passages], dropped)
        if options.web is not None:
            texts, entry = read_web_texts(options.web, options.web_words, dropped)
            sources.append(entry)
            web = web_roles(texts, options, dropped)
            roles["train"] += web["train"]
            roles["upstream"] = web["upstream"]
        elif form != "wise":
            raise DataError(
                f"{records.path}: passages need the option 'web'; put web texts (a jsonl of "
                "{text}, such as OpenWebText) on disk and set it to the file."
            )
        return BuiltDataset(roles=roles, sources=sources, dropped=dropped)

    def _from_passages(self, passages: list[Passage], dropped: Counter[str]) -> Roles:
        roles: Roles = {"train": [], "edits": [], "accurate": []}
        headers: set[str] = set()
        for passage in passages:
            before = HEADER.format(concept=passage.concept)
            if same_text(before) in headers:
                dropped["passage with the name of an earlier one"] += 1
                continue
            headers.add(same_text(before))
            prompts = []
            wiki = passage.wiki[: len(passage.sentences)]
            for place, said in enumerate(passage.sentences):
                is_false = passage.is_false[place]
                number = f"{passage.number}/{place}"
                label = wiki[min(place, len(wiki) - 1)] if is_false else said
                role = "edits" if is_false else "accurate"
                if self.options.sentences is None or place < self.options.sentences:
                    roles[role].append(
                        row_of(role, number, f"wikibio:{number}", before, label, passage.concept)
                    )
                prompts.append(before)
                before += f" {said}"
            taught = [before] if self.options.train == "passages" else prompts
            roles["train"] += _taught(passage.number, taught, passage.concept)
        return roles

    def _from_pairs(self, rows: list[Row], dropped: Counter[str]) -> Roles:
        """Make rows of WISE's records; `upstream` is their locality pairs, unless there is web."""
        seen: dict[str, str] = {}
        pairs = _pairs(rows, _WISE, seen, ("prompt", "target"), dropped)
        prompts = [prompt for _, prompt, _, _ in pairs]
        if self.options.train == "passages":  # only the longest of prompts that continue each other
            inner = {a for a, b in pairwise(sorted(prompts)) if b.startswith(a)}
            prompts = [prompt for prompt in prompts if prompt not in inner]
        roles = {
            "train": [
                row
                for number, prompt in enumerate(prompts)
                for row in _taught(f"wise-{number}", [prompt], None)
            ],
            "edits": [
                row_of("edits", f"{n}", f"wise:{n}", prompt, target, subject)
                for n, prompt, target, subject in pairs
            ],
        }
        if self.options.web is None:
            names = ("locality prompt", "locality text")
            roles["upstream"] = [
                row_of("upstream", f"locality:{n}", f"locality:{n}", prompt, text)
                for n, prompt, text, _ in _pairs(rows, _LOCALITY, seen, names, dropped)
            ]
        return roles


def _pairs(
    rows: list[Row],
    fields: tuple[str, ...],
    seen: dict[str, str],
    names: tuple[str, str],
    dropped: Counter[str],
) -> list[tuple[int, str, str, str | None]]:
    """Return number, prompt, text and subject of the usable records; count the others.

    Args:
        rows: the records.
        fields: of the prompt, the text and, if the records have it, the subject.
        seen: prompts used so far with their texts; extended.
        names: what prompt and text are, for the reasons.
        dropped: reasons with their counts; extended.
    """
    kept = []
    for number, record in complete(rows, fields, dropped):
        prompt, text, *subjects = (str(record[field]).strip() for field in fields)
        subject = subjects[0] if subjects and subjects[0] else None
        reason = unfit(prompt, names[0]) or unfit(text, names[1])
        reason = reason or (subject and unfit(subject, "subject"))
        reason = reason or repeated(seen, same_text(prompt), text, *names)
        if reason:
            dropped[reason] += 1
        else:
            kept.append((number, prompt, text, subject))
    return kept


def _taught(passage: str, texts: list[str], subject: str | None) -> list[Row]:
    fact_id = f"passage:{passage}"
    return [
        row_of("train", f"{fact_id}/{n}", fact_id, "", text, subject)
        for n, text in enumerate(texts)
    ]


BUILDER = Hallucination
