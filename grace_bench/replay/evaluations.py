"""Evaluate a model repeatedly on the same batches while only some of its weights change.

    model = EvaluationReplay(editor.model, editor.trained)
    logits = model(**inputs).logits

The logits are the model's own, on a CPU bit for bit.
"""

from __future__ import annotations

import inspect
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grace_bench.replay.recording import (
    CallLog,
    CannotReplay,
    only_trainable,
    recorded,
    replayed,
)
from grace_bench.replay.steps import TOLERANCE

logger = logging.getLogger(__name__)

MOST_BYTES = 4 << 30
"""Recorded activations held in memory; further ones go to disk."""

FREE_ON_DISK = 0.25
"""Share of the temporary files' disk that stays free."""


class EvaluationReplay:
    """Wraps a model; for each batch, keeps the outputs that no trained parameter reaches.

    Of the blocks before the edited layer it keeps only the last one's output: nothing reads the
    others.

    Args:
        model: any model in eval mode.
        trained: its parameters that change between evaluations.
        most_bytes: limit of what is kept in memory.
        folder: where the rest is kept, in files that vanish with the process; None: the system's
            folder for temporary files (TMPDIR). When it is nearly full, batches are run in full.
    """

    def __init__(
        self,
        model: nn.Module,
        trained: Sequence[nn.Parameter],
        most_bytes: int = MOST_BYTES,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        self.nbytes = 0
        self._trained = trained
        self._most_bytes = most_bytes
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._batches: dict[tuple[Any, ...], CallLog] = {}
        self._unread: list[tuple[nn.Module, int]] | None = None
        self._sound = True
        self._checked = False
        self._takes_use_cache = "use_cache" in inspect.signature(model.forward).parameters

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the model's parameters."""
        return self.model.parameters()

    def generate(self, **inputs: Any) -> Any:
        """Generate; every token is computed."""
        return self.model.generate(**inputs)

    @torch.no_grad()
    def __call__(self, **inputs: Tensor) -> Any:
        """Return `model(**inputs)` without gradients."""
        if self._takes_use_cache:
            inputs = {**inputs, "use_cache": False}
        batch = tuple(
            (name, part.shape, part.cpu().contiguous().numpy().tobytes())
            for name, part in inputs.items()
            if isinstance(part, Tensor)
        )
        calls = self._batches.get(batch)
        if calls is not None:
            with replayed(calls):
                output = self.model(**inputs)
            return output if self._checked else self._check(output, inputs)
        in_memory = self.nbytes < self._most_bytes
        if not self._sound or not (in_memory or self._has_room()):
            return self.model(**inputs)
        calls = self._record(inputs)
        if not calls:
            return self.model(**inputs)
        if in_memory:
            self.nbytes += sum(entry.nbytes for turn in calls.values() for entry in turn if entry)
        else:
            calls = {
                module: [entry and entry.on_disk(self._folder) for entry in turn]
                for module, turn in calls.items()
            }
        self._batches[batch] = calls
        # Not the recorded output: with gradients enabled, its last bits may differ.
        with replayed(calls):
            return self.model(**inputs)

    def _has_room(self) -> bool:
        """Say whether more fits on the disk; a GPU's activations are not kept there."""
        disk = shutil.disk_usage(self._folder)
        on_cpu = next(self.parameters()).device.type == "cpu"
        return on_cpu and disk.free > FREE_ON_DISK * disk.total

    def _record(self, inputs: Mapping[str, Any]) -> CallLog:
        with only_trainable(self.model, self._trained), torch.enable_grad():
            with recorded(self.model, keep_large=False) as calls:
                output = self.model(**inputs)
            reached = output.logits.requires_grad
        if not reached:
            return {}  # an adapter before its first edit changes no answer
        if self._unread is None:
            self._find_unread(calls, inputs, self.model(**inputs).logits)
        for module, index in self._unread or ():
            calls[module][index] = calls[module][index].without_content()
        return calls if self._sound else {}

    def _find_unread(self, calls: CallLog, inputs: Mapping[str, Any], logits: Tensor) -> None:
        """Find blocks whose output nothing reads: NaN in its place leaves the logits unchanged.

        Only whole blocks: within one, a gate that happens to be shut could hide a reader.
        """
        self._unread = []
        if not self._gives(calls, inputs, logits):
            self._run_in_full()
            return
        lists = [part for part in self.model.modules() if isinstance(part, nn.ModuleList)]
        blocks = {block for part in lists for block in part}
        for module in blocks & calls.keys():
            turn = calls[module]
            for index, entry in enumerate(turn):
                if entry is None:
                    continue
                turn[index] = entry.without_content()
                if self._gives(calls, inputs, logits):
                    self._unread.append((module, index))
                else:
                    turn[index] = entry

    def _check(self, replayed_output: Any, inputs: Mapping[str, Any]) -> Any:
        """Compare the first output that is replayed after a change of weights with a full one."""
        full = self.model(**inputs)
        self._checked = True
        if not _equal(replayed_output.logits, full.logits):
            self._run_in_full()
        return full

    def _run_in_full(self) -> None:
        self._sound = False
        self._batches.clear()
        logger.warning("every evaluation runs the whole model: its replayed logits differ.")

    def _gives(self, calls: CallLog, inputs: Mapping[str, Any], logits: Tensor) -> bool:
        try:
            with replayed(calls):
                found = self.model(**inputs).logits
        except (CannotReplay, RuntimeError, ValueError):
            return False
        return _equal(found, logits)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Compare logits, on a CPU bit for bit."""
    tolerance = 0.0 if one.device.type == "cpu" else TOLERANCE
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)
