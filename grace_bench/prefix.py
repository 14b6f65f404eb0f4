"""Run a model again and again on one batch, computing only what a trained parameter can change.

    prefix = Prefix(model)
    with prefix.replaying(inputs) as forward:
        for _ in range(steps):
            loss = forward().loss

The first call runs the whole model and keeps the output of every module that no trained parameter
reaches: whole blocks before the edited layer, what its own block computed before it, and what a
decoder does before it looks at the encoder. Later calls hand these out instead of computing them.

Engines:
    direct: every call runs the whole model.
    replay: the same results bit for bit.
    lean: a causal language model computes logits only where a label is asked for, too; this
        regroups sums, so that the last bits may differ.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_bench.codebook import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device)
"""What a module may be given, beside tensors, and still be replayed."""

RELATIVE_TOLERANCE = 1e-4
"""Of the loss at labelled positions only, when a model's first replayed output is checked."""


class CannotReplay(Exception):
    """Why a model is run in full; the message is a clause."""


@dataclass(frozen=True)
class Kept:
    """The output of one module call, and its tensors' versions: a later change would show."""

    output: Any
    versions: tuple[int, ...]

    def unchanged(self) -> Any:
        """Return the output as it was kept."""
        if self.versions != tuple(tensor._version for tensor in _tensors(self.output)):
            raise CannotReplay("a kept output is changed in place afterwards")
        return self.output


Calls = dict[nn.Module, list[Kept | None]]
"""For each module its calls in order; None: compute it, a trained parameter reaches it."""


class Prefix:
    """Runs one model for many gradient steps at the price of what those steps change.

    Args:
        model: any model in eval mode; its trained parameters may differ from batch to batch.
        engine: lean, replay or direct.

    Attributes:
        reason: why the model is run in full after all; None while it is replayed.
    """

    def __init__(self, model: nn.Module, engine: str = "lean") -> None:
        self.model = model
        self.lean = engine == "lean"
        self.reason = "the engine is 'direct'" if engine == "direct" else None
        self._checked = False

    def on(self, inputs: Mapping[str, Any], all_logits: bool = False) -> Callable[[], Any]:
        """Return a function that returns `model(**inputs)`, for parameters as they then are.

        Args:
            inputs: of the model; the same tensors at each step.
            all_logits: of a causal language model too, not only those that predict a label.
        """
        return _Session(self, inputs, all_logits or not self.lean).forward

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
            full = self.model(**inputs)
        tolerance = 0.0 if replayed.loss.device.type == "cpu" else RELATIVE_TOLERANCE
        if replayed.logits.shape != full.logits.shape:
            tolerance = RELATIVE_TOLERANCE  # logits at labelled positions only
        if not torch.allclose(replayed.loss, full.loss, rtol=tolerance, atol=0.0, equal_nan=True):
            raise CannotReplay(
                "its replayed loss differs from that of a full forward "
                f"({replayed.loss.item():.9g} instead of {full.loss.item():.9g})"
            )
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

    def forward(self) -> Any:
        """Return the model's output; the first call keeps, the others replay."""
        prefix = self._prefix
        if prefix.reason is None:
            try:
                if self._calls is None:
                    return self._record()
                with _replayed(self._calls):
                    output = self._model(**self._short)
                prefix.check(output, self._inputs)
                return output
            except CannotReplay as error:
                prefix.run_in_full(error)
        return self._model(**self._inputs)

    def _record(self) -> Any:
        if self._model.training:
            raise CannotReplay("it is in training mode, where dropout differs at each step")
        less = _only_what_is_read(self._model, self._inputs, self._all_logits)
        self._short = {**self._inputs, **less}
        with _recorded(self._model) as calls:
            output = self._model(**self._short)
        self._calls = calls
        return output


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


@contextmanager
def _recorded(model: nn.Module) -> Iterator[Calls]:
    """Let the next call of the model fill in what its modules may hand out again."""
    log: list[tuple[nn.Module, Kept | None]] = []
    began: list[int] = []
    calls: Calls = {}

    def enter(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
        began.append(len(log))

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        start = began.pop()
        within = all(kept is not None for _, kept in log[start:])
        if within and _is_fixed((args, kwargs)) and _is_fixed(output):
            del log[start:]  # what it called is inside of what it returned
            log.append((module, Kept(output, tuple(t._version for t in _tensors(output)))))
        else:
            log.append((module, None))

    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()
    for module, kept in log:
        calls.setdefault(module, []).append(kept)


@contextmanager
def _replayed(calls: Calls) -> Iterator[None]:
    """Let modules hand out what they returned before, each call in its turn.

    Raises:
        CannotReplay: the modules were not called as they were before.
    """
    replaced: list[tuple[nn.Module, Any]] = []
    turns = {module: iter(kept) for module, kept in calls.items() if any(kept)}
    try:
        for module, turn in turns.items():
            replaced.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = _hand_out(turn, module.forward)
        yield
    finally:
        for module, before in replaced:
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
    if any(next(turn, turn) is not turn for turn in turns.values()):
        raise CannotReplay("it calls fewer modules at one step than at another")


def _hand_out(turn: Iterator[Kept | None], forward: Callable[..., Any]) -> Callable[..., Any]:
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        kept = next(turn, turn)
        if kept is turn:
            raise CannotReplay("it calls more modules at one step than at another")
        return forward(*args, **kwargs) if kept is None else kept.unchanged()

    return stand_in


def _is_fixed(value: Any) -> bool:
    """Say whether nothing in `value` can depend on a trained parameter."""
    if isinstance(value, Tensor):
        return not value.requires_grad
    if isinstance(value, Mapping):
        return all(_is_fixed(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_is_fixed(item) for item in value)
    return isinstance(value, PLAIN)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
