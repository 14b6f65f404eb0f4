"""Tensors that grow and shrink by rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

COPIED = 4096
"""Rows copied at once."""


def reserve(buffer: Tensor, used: int, needed: int) -> Tensor:
    """Return `buffer` with room for `needed` rows, the first `used` of them kept.

    Capacity doubles up to 1024 rows and then grows by an eighth, so that appending a row costs a
    constant number of copies on average.
    """
    if needed <= len(buffer):
        return buffer
    room = needed + max(8, min(needed, 1024), needed // 8)
    new = buffer.new_empty(room, *buffer.shape[1:])
    new[:used] = buffer[:used]
    return new


def close_gap(buffer: Tensor, index: int, used: int) -> None:
    """Remove row `index` of the first `used`: later rows move up."""
    for start in range(index, used - 1, COPIED):
        stop = min(start + COPIED, used - 1)
        buffer[start:stop] = buffer[start + 1 : stop + 1].clone()
