"""Run a model again and again on one batch, computing only what a trained parameter can change.

    forward = Prefix(model).on(inputs)
    for _ in range(steps):
        loss = forward().loss

The first call runs the whole model and keeps the output of every module that no trained parameter
reaches: whole blocks before the edited layer, what its own block computed before it, and what a
decoder does before it looks at the encoder. Later calls hand these out instead of computing them.

Engines:
    direct: every call runs the whole model.
    replay: the same results bit for bit.
    lean: also leaves out what no label reads: a causal language model's other logits, and, for
        editors that ask for it, positions that no logit reads (`unused_positions.py`). This
        regroups sums, so that the last bits may differ.
"""

from __future__ import annotations

import inspect
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_bench.codebook.codebook import IGNORED
from grace_bench.replay.recording import Calls, CannotReplay, only_trainable, recorded, replayed
from grace_bench.replay.unused_positions import (
    Columns,
    only_columns,
    read_columns,
    same_logits,
    watched,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

logger = logging.getLogger(__name__)

MOST_BYTES = 4 << 30
"""Of kept activations in evaluations, in memory; the others are kept on disk."""

FREE_ON_DISK = 0.25
"""Share of the disk with temporary files that is left alone."""

TOLERANCE = 1e-4
"""Of logits, relative to the largest, where the first replayed output may be rounded otherwise."""


class Prefix:
    """Runs one model for many gradient steps at the price of what those steps change.

    Args:
        model: any model in eval mode; its trained parameters may differ from batch to batch.
        engine: lean, replay or direct.
        leave_out_unread: positions, too, where the engine is lean.

    Attributes:
        reason: why the model is run in full after all; None while it is replayed.
        leaves_out: whether unread positions are looked for; not again once none was found.
    """

    def __init__(
        self, model: nn.Module, engine: str = "lean", leave_out_unread: bool = True
    ) -> None:
        self.model = model
        self.lean = engine == "lean"
        self.reason = "the engine is 'direct'" if engine == "direct" else None
        self.leaves_out = self.lean and leave_out_unread
        self._checked = False

    def on(self, inputs: Mapping[str, Any], all_logits: bool = False) -> Callable[[], Any]:
        """Return a function that returns `model(**inputs)`, for parameters as they then are.

        Args:
            inputs: of the model; the same tensors at each step.
            all_logits: of a causal language model too, not only those that predict a label.
        """
        return _Session(self, inputs, all_logits or not self.lean).forward

    def state(self) -> dict[str, Any]:
        """Return what was found out about the model so far, as a JSON value."""
        return {"reason": self.reason, "leaves_out": self.leaves_out, "checked": self._checked}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what was found out before: what is left out decides the last bits."""
        self.reason, self.leaves_out = state["reason"], state["leaves_out"]
        self._checked = state["checked"]

    def run_in_full(self, error: CannotReplay) -> None:
        """Give up replaying this model, and say why in the log."""
        self.reason = str(error)
        logger.warning("every gradient step runs the whole model: %s.", self.reason)

    def check(self, replayed: Any, inputs: Mapping[str, Any]) -> None:
        """Compare the model's first replayed output with a full forward.

        Raises:
            CannotReplay: they differ, so something reaches a kept output that autograd can't see.
        """
        if self._checked:
            return
        with torch.no_grad():
            logits = self.model(**inputs).logits
        exact = logits.device.type == "cpu" and replayed.logits.shape == logits.shape
        if replayed.logits.shape != logits.shape:
            logits = logits[:, labelled_columns(inputs["labels"])]
        tolerance = 0.0 if exact else TOLERANCE * logits.abs().max().item()
        difference = (replayed.logits - logits).abs().max().item()
        if not difference <= tolerance and logits.isfinite().all():
            raise CannotReplay(f"its replayed logits are {difference:.2g} off those of a full call")
        self._checked = True


class _Session:
    """The steps on one batch."""

    def __init__(self, prefix: Prefix, inputs: Mapping[str, Any], all_logits: bool) -> None:
        self._prefix = prefix
        self._all_logits = all_logits
        self._model = prefix.model
        self._inputs = inputs
        self._short: Mapping[str, Any] = inputs
        self._calls: Calls | None = None
        self._columns: Columns | None = None

    def forward(self) -> Any:
        """Return the model's output; the first call keeps, the others replay."""
        prefix = self._prefix
        if prefix.reason is None:
            try:
                if self._calls is None:
                    return self._record()
                if self._columns is None:
                    return self._find_unread()
                with replayed(self._calls), only_columns(self._columns):
                    return self._model(**self._short)
            except CannotReplay as error:
                prefix.run_in_full(error)
        return self._model(**self._inputs)

    def _find_unread(self) -> Any:
        """Return the first replayed output; see whether more can be left out of the next."""
        prefix, model = self._prefix, self._model
        with replayed(self._calls), watched(model) as seen:
            output = model(**self._short)
        prefix.check(output, self._inputs)
        self._columns = read_columns(seen, output.logits) if prefix.leaves_out else {}
        if self._columns:
            with replayed(self._calls):
                if not same_logits(model, self._short, self._columns, output.logits, TOLERANCE):
                    self._columns = {}
        prefix.leaves_out = bool(self._columns)
        return output

    def _record(self) -> Any:
        if self._model.training:
            raise CannotReplay("it is in training mode, where dropout differs at each step")
        less = _only_what_is_read(self._model, self._inputs, self._all_logits)
        self._short = {**self._inputs, **less}
        with recorded(self._model) as calls:
            output = self._model(**self._short)
        self._calls = calls
        return output


class PrefixCache:
    """Stands for a model in evaluations that come again and again, some of its weights changed.

    For each batch it keeps what no trained parameter reaches, as far as anything reads it: of the
    blocks before the edited layer the last one's output, none of the others.

    Args:
        model: any model in eval mode.
        trained: its parameters that change between evaluations.
        most_bytes: kept in memory at most.
        folder: where further ones are kept, in files that vanish with the process; None: where
            the system has temporary files (TMPDIR). Once it is nearly full, batches are run in
            full.
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
        self._batches: dict[tuple[Any, ...], Calls] = {}
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
            (name, part.shape, _content(part))
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
            self.nbytes += sum(kept.nbytes for turn in calls.values() for kept in turn if kept)
        else:
            calls = {
                module: [kept and kept.on_disk(self._folder) for kept in turn]
                for module, turn in calls.items()
            }
        self._batches[batch] = calls
        # Not what was recorded: where gradients are taken, the last bits may differ.
        with replayed(calls):
            return self.model(**inputs)

    def _has_room(self) -> bool:
        """Say whether there is a disk to keep more on; activations of a GPU stay there."""
        disk = shutil.disk_usage(self._folder)
        on_cpu = next(self.parameters()).device.type == "cpu"
        return on_cpu and disk.free > FREE_ON_DISK * disk.total

    def _record(self, inputs: Mapping[str, Any]) -> Calls:
        with only_trainable(self.model, self._trained), torch.enable_grad():
            with recorded(self.model, wide=False) as calls:
                output = self.model(**inputs)
            reached = output.logits.requires_grad
        if not reached:
            return {}  # an adapter that never was trained leaves every answer alone
        if self._unread is None:
            self._find_unread(calls, inputs, self.model(**inputs).logits)
        for module, index in self._unread or ():
            calls[module][index] = calls[module][index].without_content()
        return calls if self._sound else {}

    def _find_unread(self, calls: Calls, inputs: Mapping[str, Any], logits: Tensor) -> None:
        """Spoil what whole blocks return, one after the other: what no logit feels is not read.

        Within a block a gate that happens to be shut could hide that something is read.
        """
        self._unread = []
        if not self._gives(calls, inputs, logits):
            self._run_in_full()
            return
        lists = [part for part in self.model.modules() if isinstance(part, nn.ModuleList)]
        blocks = {block for part in lists for block in part}
        for module in blocks & calls.keys():
            turn = calls[module]
            for index, kept in enumerate(turn):
                if kept is None:
                    continue
                turn[index] = kept.without_content()
                if self._gives(calls, inputs, logits):
                    self._unread.append((module, index))
                else:
                    turn[index] = kept

    def _check(self, replayed_output: Any, inputs: Mapping[str, Any]) -> Any:
        """Compare the first replayed output with a full one: the weights have changed meanwhile."""
        full = self.model(**inputs)
        self._checked = True
        if not _equal(replayed_output.logits, full.logits):
            self._run_in_full()
        return full

    def _run_in_full(self) -> None:
        self._sound = False
        self._batches.clear()
        logger.warning("every evaluation runs the whole model: replayed, its logits differ.")

    def _gives(self, calls: Calls, inputs: Mapping[str, Any], logits: Tensor) -> bool:
        try:
            with replayed(calls):
                found = self.model(**inputs).logits
        except (CannotReplay, RuntimeError, ValueError):
            return False
        return _equal(found, logits)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Say whether logits are equal, on a CPU bit for bit."""
    tolerance = 0.0 if one.device.type == "cpu" else TOLERANCE
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)


def _content(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().numpy().tobytes()


def labelled_columns(labels: Tensor) -> Tensor:
    """Return the columns (K,) whose logits predict a label of any row of labels (B, L)."""
    return (labels[:, 1:] != IGNORED).any(0).nonzero().flatten()


def _only_what_is_read(
    model: nn.Module, inputs: Mapping[str, Any], all_logits: bool
) -> dict[str, Any]:
    """Return arguments that save a model what no loss reads: a cache, logits without a label."""
    parameters = inspect.signature(model.forward).parameters
    extra: dict[str, Any] = {}
    if "use_cache" in parameters:
        extra["use_cache"] = False
    labels = inputs.get("labels")
    shorter = not all_logits and "logits_to_keep" in parameters
    if shorter and labels is not None and labels.dim() == 2:
        columns = labelled_columns(labels)
        if len(columns):
            extra |= {"logits_to_keep": columns, "shift_labels": labels[:, columns + 1]}
    return extra
