"""The unedited model as an editor: the floor every other one is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from grace_bench.editors.base import EditBatch, Editor, EditResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class UneditedEditor(Editor):
    """Edits do nothing."""

    name: ClassVar[str] = "unedited"

    def edit(self, batch: EditBatch) -> EditResult:
        """Do nothing."""
        return EditResult()

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""

    def remove(self) -> None:
        """Do nothing."""
