"""Record the outputs of a model's modules, and replay them in later calls.

    with recorded(model) as calls:
        model(**inputs)
    with replayed(calls):
        model(**inputs)

Recording runs with gradients enabled, to see what a trained parameter reaches; a replay computes
only that.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device)
"""Arguments, besides tensors, that a replayed module may take."""

LARGE = 4
"""An output this many times larger than its inputs counts as large."""


class CannotReplay(Exception):
    """Why a model is run in full; the message is a clause."""


@dataclass(frozen=True)
class RecordedOutput:
    """The output of one module call, and its tensors' versions, which reveal a later change."""

    output: Any
    versions: tuple[int, ...]

    @classmethod
    def of(cls, output: Any) -> RecordedOutput:
        """Record an output as it is now."""
        return cls(output, tuple(tensor._version for tensor in _tensors(output)))

    @property
    def nbytes(self) -> int:
        """Bytes of memory behind the output."""
        return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(self.output))

    def without_content(self) -> RecordedOutput:
        """Return the same with every float replaced by NaN, which takes no memory."""
        return RecordedOutput.of(_changed(self.output, _without_content))

    def on_disk(self, folder: Path) -> RecordedOutput:
        """Return the same in memory-mapped files, which vanish with the process."""
        return RecordedOutput.of(_changed(self.output, lambda tensor: _mapped(tensor, folder)))

    def unchanged(self) -> Any:
        """Return the output; raise CannotReplay if it was changed in place."""
        if self.versions != tuple(tensor._version for tensor in _tensors(self.output)):
            raise CannotReplay("a recorded output is changed in place afterwards")
        return self.output


CallLog = dict[nn.Module, list[RecordedOutput | None]]
"""Each module's calls in order; None: a trained parameter reaches it, so it is computed."""


@contextmanager
def only_trainable(model: nn.Module, trained: Iterable[nn.Parameter]) -> Iterator[None]:
    """Make these parameters of the model, and no others, trainable within the block."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


@contextmanager
def recorded(model: nn.Module, keep_large: bool = True) -> Iterator[CallLog]:
    """Record the model's next call.

    Args:
        model: called once within the block, after which the log is complete.
        keep_large: also keep outputs that are several times larger than their inputs.
    """
    log: list[tuple[nn.Module, RecordedOutput | None, bool]] = []  # True: computed each time
    began: list[int] = []
    calls: CallLog = {}

    def enter(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
        began.append(len(log))

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        start = began.pop()
        reached = any(entry[-1] for entry in log[start:])
        if reached or not _is_fixed((args, kwargs)) or not _is_fixed(output):
            log.append((module, None, True))
            return
        del log[start:]  # the output contains those of the modules it called
        given = _size((args, kwargs))
        keep = keep_large or given == 0 or _size(output) < LARGE * given
        log.append((module, RecordedOutput.of(output) if keep else None, False))

    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()
    for module, entry, _ in log:
        calls.setdefault(module, []).append(entry)


@contextmanager
def replayed(calls: CallLog) -> Iterator[None]:
    """Let modules return their recorded outputs, call by call.

    Raises:
        CannotReplay: the modules are not called as they were when recorded.
    """
    replaced: list[tuple[nn.Module, Any]] = []
    turns = {module: iter(entries) for module, entries in calls.items() if any(entries)}
    try:
        for module, turn in turns.items():
            replaced.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = _replaying(turn, module.forward)
        yield
    finally:
        for module, before in replaced:
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
    if any(next(turn, turn) is not turn for turn in turns.values()):
        raise CannotReplay("it calls fewer modules at one step than at another")


def _replaying(
    turn: Iterator[RecordedOutput | None], forward: Callable[..., Any]
) -> Callable[..., Any]:
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        entry = next(turn, turn)
        if entry is turn:
            raise CannotReplay("it calls more modules at one step than at another")
        return forward(*args, **kwargs) if entry is None else entry.unchanged()

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


def _size(value: Any) -> int:
    """Count the floats; integers (token ids, masks) don't count."""
    return sum(tensor.numel() for tensor in _tensors(value) if tensor.is_floating_point())


def _without_content(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.new_full((), torch.nan).expand(tensor.shape)


def _mapped(tensor: Tensor, folder: Path) -> Tensor:
    """Return a copy in an unnamed file, of which the system caches in memory what it can."""
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes == 0 or tensor.untyped_storage().nbytes() < nbytes:  # NaN without content
        return tensor
    with tempfile.NamedTemporaryFile(dir=folder, prefix="grace-bench-") as file:
        file.truncate(nbytes)
        copied = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return copied.view(tensor.shape).copy_(tensor.detach())


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return `value` with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        changed = copy.copy(value)
        for name, item in value.items():
            changed[name] = _changed(item, change)
        return changed
    if isinstance(value, list | tuple):
        items = [_changed(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)
