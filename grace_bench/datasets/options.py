"""Options of all data set builders. Torch-free, so that reading a suite is fast."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from grace_bench.suite.safe_yaml import with_numbers

T = TypeVar("T")


class DatasetOptions(BaseModel):
    """Base class; unknown names and values out of range are errors."""

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
    """Options of builders with a second stream for choosing hyperparameters."""

    partition: Literal["test", "development"] = Field(
        default="test",
        description="Which stream. The two share `train`, hence the base model, and nothing else. "
        "Choose hyperparameters on development, report results on test.",
    )

    def share(self, items: list[T], test: int, development: int) -> list[T]:
        """Return the partition's items: the first `test`, or the `development` that follow."""
        is_test = self.partition == "test"
        return items[:test] if is_test else items[test : test + development]


SOURCE_KEYS = "(keys: path, revision, split, sha256, licence; or just the path)"
"""The keys of a Source, for descriptions of options."""


class Source(BaseModel):
    """Where records are: a file, a folder with a copy of a hub data set, or a hub id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        min_length=1,
        description="A jsonl, json, csv, parquet or txt file; a folder made by save_to_disk or "
        "with one file per split; or the id of a hub data set.",
    )
    revision: str | None = Field(
        default=None,
        description="Revision of a hub data set; required, except that `table` defaults to main.",
    )
    split: str = Field(default="train", description="Split of a hub data set or of a folder.")
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-fA-F]{64}$",
        description="Expected hash of a local file; for a folder's split, as in the manifest.",
    )
    licence: str = Field(default="not stated", description="Licence, for the manifest.")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value
