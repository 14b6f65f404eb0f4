"""What a codebook knows of a key besides its numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

IGNORED = -100
"""Label id that Hugging Face losses ignore."""


@dataclass(frozen=True, slots=True)
class Label:
    """The answer that a key stands for.

    Args:
        ids: the label's token ids without masked ones.
        mean: mean of the whole label row in float32, mask included (for the released rule, G1).
        text: the label for people.
    """

    ids: tuple[int, ...]
    mean: float
    text: str = ""

    @classmethod
    def of(cls, labels: Tensor, text: str = "") -> Label:
        """Read a label from the model's `labels` of one example, any shape."""
        row = labels.detach().flatten().cpu()
        return cls(tuple(row[row != IGNORED].tolist()), row.float().mean().item(), text)

    def same_as(self, other: Label, rule: str) -> bool:
        """Compare by token ids (`exact`) or by means (`mean`, the released rule; G1)."""
        return self.mean == other.mean if rule == "mean" else self.ids == other.ids


@dataclass(slots=True)
class KeyInfo:
    """A key's label, the examples behind it, and the steps that made and last changed it.

    A codebook keeps copies, and adds to their examples.
    """

    label: Label
    example_ids: Iterable[str] = ()  # kept as the keys of a dict, in order, each once
    made_at_step: int = 0
    changed_at_step: int = 0

    def __post_init__(self) -> None:
        """Copy the examples."""
        self.example_ids = dict.fromkeys(self.example_ids)
