"""Time one forward pass while a codebook grows (GRACE, Fig. 6).

    rows = time_forward_passes(editor, task, examples)

Each input goes through the model alone, alternately with its editor and without, so that other
load on the machine affects both equally.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_bench.models.device import synchronize
from grace_bench.tasks.base import Example, Task, to_device

if TYPE_CHECKING:
    from grace_bench.editors.base import Editor

REPEATS = 10
"""Timed passes of each input, as in the paper; one more, before them, is not timed."""


@torch.no_grad()
def time_forward_passes(
    editor: Editor, task: Task, examples: Sequence[Example], repeats: int = REPEATS
) -> list[dict[str, Any]]:
    """Return one row of schemas.LATENCY per example, without the run's step and counts.

    Args:
        editor: owns the model; unchanged afterwards.
        task: turns examples into tensors.
        examples: timed one by one.
        repeats: timed passes of each, with the editor and without.
    """
    rows = []
    for example in examples:
        inputs = to_device(task.encode([example]), editor.model)
        edited, unedited = [], []
        for turn in range(-1, repeats):
            for seconds, context in (
                (edited, contextlib.nullcontext()),
                (unedited, editor.disabled()),
            ):
                with context:
                    took = _seconds(editor.model, inputs)
                if turn >= 0:  # the first call warms up
                    seconds.append(took)
        rows.append(
            {
                "example_id": example["example_id"],
                "n_tokens": inputs["input_ids"].numel(),
                "repeats": repeats,
                "seconds": statistics.median(edited),
                "seconds_unedited": statistics.median(unedited),
            }
        )
    return rows


def _seconds(model: nn.Module, inputs: Mapping[str, Tensor]) -> float:
    device = next(iter(inputs.values())).device
    synchronize(device)
    started = time.perf_counter()
    model(**inputs)
    synchronize(device)
    return time.perf_counter() - started
