"""Run a model repeatedly on one batch, computing only what a trained parameter can change.

    forward = StepReplay(model).session(inputs)
    for _ in range(steps):
        loss = forward().loss

The first call runs the whole model and keeps the output of every module that no trained parameter
reaches: the blocks before the edited layer, the earlier parts of its own block, and what a decoder
does before it attends to the encoder. Later calls reuse these outputs.

Engines:
    direct: every call runs the whole model.
    replay: the same results bit for bit.
    lean: also skips what no label reads: a causal language model's other logits and, for editors
        that allow it, positions that no logit reads (`unused_positions.py`). Sums are regrouped,
        so the last bits may differ.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from grace_bench.codebook.keys import IGNORED
from grace_bench.replay.recording import CallLog, CannotReplay, recorded, replayed
from grace_bench.replay.unused_positions import (
    Columns,
    only_columns,
    read_columns,
    same_logits,
    watched,
)

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Difference of logits, relative to the largest, that rounding may cause in a replay."""


class StepReplay:
    """Runs one model for many gradient steps at the price of what those steps change.

    Args:
        model: any model in eval mode; its trained parameters may differ from batch to batch.
        engine: lean, replay or direct.
        skip_unused: also skip unused positions, if the engine is lean.

    Attributes:
        reason: why the model is run in full; None while it is replayed.
        skips_unused: whether to look for unused positions; False once none was found.
    """

    def __init__(self, model: nn.Module, engine: str = "lean", skip_unused: bool = True) -> None:
        self.model = model
        self.lean = engine == "lean"
        self.reason = "the engine is 'direct'" if engine == "direct" else None
        self.skips_unused = self.lean and skip_unused
        self._checked = False

    def session(self, inputs: Mapping[str, Any], all_logits: bool = False) -> Callable[[], Any]:
        """Return a function that returns `model(**inputs)` for the current parameters.

        Args:
            inputs: of the model; the same tensors at each step.
            all_logits: compute all logits of a causal model, not only those that predict a label.
        """
        return _Session(self, inputs, all_logits or not self.lean).forward

    def state(self) -> dict[str, Any]:
        """Return what is known about the model so far, as a JSON value."""
        return {"reason": self.reason, "skips": self.skips_unused, "checked": self._checked}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`, on which the last bits of further steps depend."""
        self.reason, self.skips_unused = state["reason"], state["skips"]
        self._checked = state["checked"]

    def run_in_full(self, error: CannotReplay) -> None:
        """Stop replaying this model, and log why."""
        self.reason = str(error)
        logger.warning("every gradient step runs the whole model: %s.", self.reason)

    def check(self, replayed: Any, inputs: Mapping[str, Any]) -> None:
        """Compare the model's first replayed output with a full forward pass.

        Raises:
            CannotReplay: they differ, so a recorded output depends on something that autograd
                can't see.
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
            raise CannotReplay(f"its replayed logits differ from a full call's by {difference:.2g}")
        self._checked = True


class _Session:
    """The steps on one batch."""

    def __init__(self, replay: StepReplay, inputs: Mapping[str, Any], all_logits: bool) -> None:
        self._replay = replay
        self._all_logits = all_logits
        self._model = replay.model
        self._inputs = inputs
        self._short: Mapping[str, Any] = inputs
        self._calls: CallLog | None = None
        self._columns: Columns | None = None

    def forward(self) -> Any:
        """Return the model's output; the first call records, later ones replay."""
        if self._replay.reason is None:
            try:
                if self._calls is None:
                    return self._record()
                if self._columns is None:
                    return self._find_unused()
                with replayed(self._calls), only_columns(self._columns):
                    return self._model(**self._short)
            except CannotReplay as error:
                self._replay.run_in_full(error)
        return self._model(**self._inputs)

    def _record(self) -> Any:
        if self._model.training:
            raise CannotReplay("it is in training mode, where dropout differs at each step")
        less = _only_what_is_read(self._model, self._inputs, self._all_logits)
        self._short = {**self._inputs, **less}
        with recorded(self._model) as calls:
            output = self._model(**self._short)
        self._calls = calls
        return output

    def _find_unused(self) -> Any:
        """Return the first replayed output, and find out what more the next steps can skip."""
        replay, model = self._replay, self._model
        with replayed(self._calls), watched(model) as seen:
            output = model(**self._short)
        replay.check(output, self._inputs)
        self._columns = read_columns(seen, output.logits) if replay.skips_unused else {}
        if self._columns:
            with replayed(self._calls):
                if not same_logits(model, self._short, self._columns, output.logits, TOLERANCE):
                    self._columns = {}
        replay.skips_unused = bool(self._columns)
        return output


def labelled_columns(labels: Tensor) -> Tensor:
    """Return the columns (K,) whose logits predict a label of any row of labels (B, L)."""
    return (labels[:, 1:] != IGNORED).any(0).nonzero().flatten()


def _only_what_is_read(
    model: nn.Module, inputs: Mapping[str, Any], all_logits: bool
) -> dict[str, Any]:
    """Return arguments that spare the model what no loss reads: a cache, unlabelled logits."""
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
