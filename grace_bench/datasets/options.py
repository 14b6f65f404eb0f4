"""The options of every data set builder: pydantic, torch-free, so that reading a suite is quick."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from grace_bench.suite.safe_yaml import with_numbers


class DatasetOptions(BaseModel):
    """Base class: unknown names and values out of range are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of every choice the builder makes."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_of_no_declared_type(cls, value: Any, info: ValidationInfo) -> Any:
        untyped = cls.model_fields[str(info.field_name)].annotation is Any
        return with_numbers(value) if untyped else value


class PartitionedOptions(DatasetOptions):
    """Options of builders that keep a second stream aside for choosing hyperparameters."""

    partition: Literal["test", "development"] = Field(
        default="test",
        description="Which stream: the two share `train`, so that they share a base model, and "
        "nothing else. Hyperparameters are chosen on development, results reported on test.",
    )

    @property
    def is_test(self) -> bool:
        """Whether the stream is the one results are reported on."""
        return self.partition == "test"


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


class TableOptions(DatasetOptions):
    """Options of `table`."""

    path: str = Field(description="A jsonl, json, csv or parquet file, or a hub data set's id.")
    revision: str | None = Field(default=None, description="Revision of a hub data set.")
    split: str = Field(default="train", description="Split of a hub data set.")
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-fA-F]{64}$",
        description="Expected hash of a local file.",
    )
    licence: str = Field(
        default="not stated", description="Licence of the table, for the manifest."
    )
    text_column: str = Field(default="text", description="Column of the text.")
    label_column: str = Field(default="label", description="Column of the label.")
    id_column: str | None = Field(
        default=None, description="Column of the row's own id; without it rows are numbered."
    )
    term_column: str | None = Field(
        default=None, description="Column that orders the rows in time; later rows are edits."
    )
    train_before: int | str | None = Field(
        default=None, description="First term of the stream; all before it are older rows."
    )
    stream_size: int | None = Field(
        default=None,
        ge=1,
        description="Rows in the stream: the first so many of the later terms, or, without a "
        "term column, so many chosen at random.",
    )
    upstream_size: int = Field(
        default=500, ge=1, description="Older rows kept out of `train`, to be retained."
    )
    strip_markup: bool = Field(
        default=False, description="Whether HTML tags and entities are taken out of the texts."
    )
    min_words: int = Field(default=1, ge=1, description="Shorter texts are dropped.")
    min_label_count: int = Field(
        default=1, ge=1, description="Labels rarer than this among older rows are dropped."
    )

    @model_validator(mode="after")
    def _stream_is_defined(self) -> TableOptions:
        if (self.term_column is None) != (self.train_before is None):
            raise ValueError("term_column and train_before belong together; give both or neither")
        if self.term_column is None and self.stream_size is None:
            raise ValueError("say what the stream is: term_column and train_before, or stream_size")
        return self
