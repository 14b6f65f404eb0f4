"""The options of builders that read real records: where the files are, and what to make of them.

ZsreOptions(edits={"path": "zsre.jsonl", "sha256": "..."}, upstream="nq_train.json")
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from grace_bench.datasets.options import DatasetOptions

_KEYS = "(keys: path, revision, split, sha256, licence; or just the path)"


class Source(BaseModel):
    """Where records are: a file, a folder with a copy of a hub data set, or a hub id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        min_length=1,
        description="A jsonl, json, csv, parquet or txt file, a folder made by save_to_disk or "
        "holding a file for each split, or a hub id, which needs a revision.",
    )
    revision: str | None = Field(default=None, description="Revision of a hub data set.")
    split: str = Field(default="train", description="Split of a hub data set or of a folder.")
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-fA-F]{64}$",
        description="Expected hash of a local file; of a folder's split, as the manifest has it.",
    )
    licence: str = Field(default="not stated", description="Licence, for the manifest.")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class ZsreOptions(DatasetOptions):
    """Options of `zsre`."""

    seed: int = Field(
        default=42,
        ge=0,
        lt=2**32,
        description="Seed of every choice the builder makes; released: 42.",
    )
    edits: Source = Field(
        description="zsRE questions: the released jsonl or the JSON list of MEND and EasyEdit "
        f"{_KEYS}."
    )
    upstream: Source = Field(
        description="NQ questions: nq_train.json, NQ-open jsonl, or the `loc` questions of a "
        f"JSON list of MEND and EasyEdit {_KEYS}."
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
    upstream_questions: int = Field(
        default=1000, ge=1, description="NQ questions in `upstream`, or all if there are fewer."
    )
    upstream_sample: Literal["first", "random"] = Field(
        default="first", description="Which: the file's first, as released, or at random."
    )
    upstream_taught: bool = Field(
        default=True,
        description="Whether `train` has the questions of `upstream` too, so that a base model "
        "fitted here knows what it is to retain.",
    )
    train_questions: int | None = Field(
        default=None, ge=1, description="NQ questions in `train`; null for all there are."
    )


class ScotusOptions(DatasetOptions):
    """Options of `scotus`."""

    upstream: Source = Field(description=f"Older cases: text, label {_KEYS}.")
    edits: Source = Field(
        description=f"Later cases, the stream in their order: text, label {_KEYS}."
    )
    train: Source | None = Field(
        default=None,
        description="Cases a base model is fitted on; null: those of `upstream`, all of them.",
    )
    text_column: str = Field(default="text", description="Column of the text.")
    label_column: str = Field(default="label", description="Column of the label.")
    upstream_size: int | None = Field(
        default=None, ge=1, description="Cases in `upstream`, at random; null for all."
    )
    classes: list[int | str] | None = Field(
        default=None,
        min_length=2,
        description="Classes in the order of the model's outputs; null: those of `train`, in the "
        "order of numbers or of letters. A pretrained head needs its own.",
    )


class HallucinationOptions(DatasetOptions):
    """Options of `hallucination`."""

    edits: Source = Field(
        description="Passages of GPT-3 with annotated sentences (WikiBio GPT-3 hallucination), or "
        f"prompts with targets (the editing form of WISE) {_KEYS}."
    )
    concepts: Source | None = Field(
        default=None,
        description="Names the passages are about, one a line in the passages' order "
        "(wiki_bio_concepts.txt); not needed for the editing form.",
    )
    web: Source | None = Field(
        default=None,
        description="Web texts to be retained, {text}; null: the locality pairs of the editing "
        f"form {_KEYS}.",
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
    upstream_texts: int = Field(
        default=1000, ge=1, description="Web texts in `upstream`: the first so many that are fit."
    )
    train_texts: int = Field(default=200, ge=0, description="Web texts in `train`.")
    train_texts_apart: bool = Field(
        default=True,
        description="Whether web texts of `train` come after those of `upstream` rather than "
        "being the first of them, as released.",
    )
    web_prompt_words: int = Field(
        default=32,
        ge=1,
        description="First words of a web text that are its prompt, but at most a third of it; "
        "1 comes near the released perplexity of the whole text.",
    )
    web_words: int = Field(
        default=700, ge=4, description="Most words of a web text; what follows is cut and counted."
    )
