"""The unedited model as an editor: the floor that all others are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from grace_bench.codebook.codebook import Codebook
from grace_bench.codebook.lookup import IncrementalLookup
from grace_bench.editors.base import EditBatch, Editor, EditResult


class UneditedEditor(Editor):
    """Edits do nothing."""

    name: ClassVar[str] = "unedited"

    def edit(self, batch: EditBatch) -> EditResult:
        """Do nothing."""
        return EditResult()

    def queries(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return queries (B, 0), which no key answers."""
        return torch.zeros(len(inputs["input_ids"]), 0)

    def incremental_lookup(self) -> IncrementalLookup:
        """Return a look-up that finds no key."""
        return IncrementalLookup(Codebook(0, 0))

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""

    def remove(self) -> None:
        """Do nothing."""
