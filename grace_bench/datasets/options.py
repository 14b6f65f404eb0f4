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


SOURCE_KEYS = "(keys: path, revision, split, sha256, licence; or just the path)"
"""What a Source takes, for descriptions of options."""


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
