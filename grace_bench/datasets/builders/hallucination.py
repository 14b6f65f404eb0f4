"""`hallucination`: false sentences of GPT-3 to be put right, true ones and web texts to be kept.

    HallucinationOptions(edits={"path": "potsawee/wiki_bio_gpt3_hallucination", "revision": "...",
                                "split": "evaluation"},
                         concepts="wiki_bio_concepts.txt", web="openwebtext.jsonl")

From passages, as the paper builds it: the prompt of a sentence is a header that names the concept
and all of GPT-3's sentences before it.

- edits: the prompt of each false sentence; label: Wikipedia's sentence at the same place, or its
  last one where Wikipedia's text, cut to the passage's number of sentences, is shorter.
- accurate: the prompt of each true sentence; label: that sentence.
- train: empty prompt; label: GPT-3's passages, false sentences included (accurate and original
  outputs of the paper), as a whole or, as released, every prompt; and web texts.
- upstream: web texts, their beginning as the prompt and the rest as the label.
- holdout: empty; the paper has none.

From the editing form of WISE (prompt, target_new, subject, locality_prompt,
locality_ground_truth): edits are its prompts with its targets, `train` has its prompts, `upstream`
is the web texts or, without them, the locality pairs. It has no accurate sentences.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder
from grace_bench.datasets.options import SOURCE_KEYS, Source
from grace_bench.datasets.reading.fields import complete, form_of, row_of, same_text, unfit
from grace_bench.datasets.reading.files import read_records
from grace_bench.datasets.sources.passages import PASSAGE_FORMS, Passage, read_passages
from grace_bench.datasets.sources.webtext import WebTextOptions, read_web_texts, web_roles
from grace_bench.errors import DataError

if TYPE_CHECKING:
    Roles = dict[str, list[dict[str, Any]]]

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
        description="Names the passages are about, one a line in the passages' order "
        "(wiki_bio_concepts.txt); not needed for the editing form.",
    )
    passages: int | None = Field(
        default=None, ge=1, description="First so many passages that are fit; null for all."
    )
    sentences: int | None = Field(
        default=None,
        ge=1,
        description="First so many sentences of each passage that are edited or kept; null for "
        "all. Prompts grow with every sentence, and so does the time of an edit.",
    )
    train: Literal["passages", "prompts"] = Field(
        default="passages",
        description="What the base model is fitted on beside web texts: each passage of GPT-3 "
        "whole, or each prompt of the stream, as released.",
    )


class Hallucination(DatasetBuilder[HallucinationOptions]):
    """Sentences of a language model that are false, with those that are to be kept."""

    name = "hallucination"
    options_class = HallucinationOptions
    tasks = ("language_modelling",)

    def build(self) -> BuiltDataset:
        """Read all sources and make all rows."""
        options = self.options
        dropped: Counter[str] = Counter()
        records = read_records(options.edits, _WHAT)
        sources = [records.entry]
        form = form_of(records, {**PASSAGE_FORMS, "wise": _WISE})
        if form == "wise":
            pairs = complete(records.rows, _WISE, dropped)
            roles = self._from_pairs(pairs, dropped)
        else:
            passages, names = read_passages(records, form, options.concepts, dropped)
            sources += names
            roles = self._from_passages(passages[: options.passages], dropped)
        if options.web is not None:
            texts, entry = read_web_texts(options.web, options.web_words, dropped)
            sources.append(entry)
            web = web_roles(texts, options, dropped)
        elif form == "wise":
            web = {"train": [], "upstream": _locality(records.rows, roles["edits"], dropped)}
        else:
            raise DataError(
                f"{records.path}: passages need the option 'web'; put web texts (a jsonl of "
                "{text}, such as OpenWebText) on disk and set it to the file."
            )
        roles["train"] += web["train"]
        roles["upstream"] = web["upstream"]
        return BuiltDataset(roles=roles, sources=sources, dropped=+dropped)

    def _from_passages(self, passages: list[Passage], dropped: Counter[str]) -> Roles:
        roles: Roles = {"train": [], "edits": [], "accurate": []}
        prompts: set[str] = set()
        for passage in passages:
            before = HEADER.format(concept=passage.concept)
            if same_text(before) in prompts:
                dropped["passage with the name of an earlier one"] += 1
                continue
            prompts.add(same_text(before))
            taught = []
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
                taught.append(before)
                before += f" {said}"
            if self.options.train == "passages":
                taught = [before]
            roles["train"] += _taught(passage.number, taught, passage.concept)
        return roles

    def _from_pairs(self, pairs: list[tuple[int, dict[str, Any]]], dropped: Counter[str]) -> Roles:
        roles: Roles = {"train": [], "edits": []}
        targets: dict[str, str] = {}
        prompts: list[str] = []
        for number, record in pairs:
            prompt, target, subject = (str(record[field]).strip() for field in _WISE)
            key = same_text(prompt)
            reason = unfit(prompt, "prompt") or unfit(target, "target")
            if reason is None and subject:
                reason = unfit(subject, "subject")
            if reason is None and key in targets:
                same = targets[key] == target
                reason = "prompt repeated" if same else "prompt with another target than before"
            if reason is not None:
                dropped[reason] += 1
                continue
            targets[key] = target
            prompts.append(prompt)
            roles["edits"].append(
                row_of("edits", str(number), f"wise:{number}", prompt, target, subject or None)
            )
        if self.options.train == "passages":  # the longest of prompts that continue each other
            ordered = sorted(prompts)
            inner = {a for a, b in pairwise(ordered) if b.startswith(a)}
            prompts = [prompt for prompt in prompts if prompt not in inner]
        for number, prompt in enumerate(prompts):
            roles["train"] += _taught(f"wise-{number}", [prompt], None)
        return roles


def _taught(passage: str, texts: list[str], subject: str | None) -> list[dict[str, Any]]:
    fact_id = f"passage:{passage}"
    return [
        row_of("train", f"{fact_id}/{n}", fact_id, "", text, subject)
        for n, text in enumerate(texts)
    ]


def _locality(
    rows: list[dict[str, Any]], edits: list[dict[str, Any]], dropped: Counter[str]
) -> list[dict[str, Any]]:
    """Return the locality pairs as `upstream`."""
    seen = {same_text(row["text"]) for row in edits}
    upstream = []
    for number, record in complete(rows, _LOCALITY, dropped):
        prompt, label = (str(record[field]).strip() for field in _LOCALITY)
        reason = unfit(prompt, "locality prompt") or unfit(label, "locality text")
        key = same_text(prompt)
        if reason is None and key in seen:
            reason = "locality prompt repeated"
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(key)
        fact_id = f"locality:{number}"
        upstream.append(row_of("upstream", fact_id, fact_id, prompt, label))
    return upstream


BUILDER = Hallucination
