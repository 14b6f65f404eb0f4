"""Record what the modules of a model return, and let them hand it out again.

    with recorded(model) as calls:
        model(**inputs)
    with replayed(calls):
        model(**inputs)

Recording runs in the mode in which gradients are taken; a replay computes only what a trained
parameter reaches.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device)
"""What a module may be given, beside tensors, and still be replayed."""


WIDE = 4
"""So many times larger than the activations it is computed from, an output is called wide."""


class CannotReplay(Exception):
    """Why a model is run in full; the message is a clause."""


@dataclass(frozen=True)
class Kept:
    """The output of one module call, and its tensors' versions: a later change would show."""

    output: Any
    versions: tuple[int, ...]

    @classmethod
    def of(cls, output: Any) -> Kept:
        """Keep an output as it is now."""
        return cls(output, tuple(tensor._version for tensor in _tensors(output)))

    @property
    def nbytes(self) -> int:
        """Bytes of memory behind the output."""
        return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(self.output))

    def without_content(self) -> Kept:
        """Return the same with tensors of NaN, which take no memory."""
        return Kept.of(_changed(self.output, _without_content))

    def on_disk(self, folder: Path) -> Kept:
        """Return the same in files that are mapped into memory, and vanish with the process."""
        return Kept.of(_changed(self.output, lambda tensor: _mapped(tensor, folder)))

    def unchanged(self) -> Any:
        """Return the output as it was kept."""
        if self.versions != tuple(tensor._version for tensor in _tensors(self.output)):
            raise CannotReplay("a kept output is changed in place afterwards")
        return self.output


Calls = dict[nn.Module, list[Kept | None]]
"""For each module its calls in order; None: compute it, a trained parameter reaches it."""


@contextmanager
def only_trainable(model: nn.Module, trained: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let these parameters of the model, and no others, take gradients while the block lasts."""
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
def recorded(model: nn.Module, wide: bool = True) -> Iterator[Calls]:
    """Let the next call of the model fill in what its modules may hand out again.

    Args:
        model: to be called once within the block.
        wide: keep outputs, too, that are several times as large as what they are computed from.
    """
    log: list[tuple[nn.Module, Kept | None, bool]] = []  # with whether a trained parameter reaches
    began: list[int] = []
    calls: Calls = {}

    def enter(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
        began.append(len(log))

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        start = began.pop()
        reached = any(entry[-1] for entry in log[start:])
        if reached or not _is_fixed((args, kwargs)) or not _is_fixed(output):
            log.append((module, None, True))
            return
        del log[start:]  # what it called is inside of what it returned
        given = _size((args, kwargs))
        keep = wide or given == 0 or _size(output) < WIDE * given
        log.append((module, Kept.of(output) if keep else None, False))

    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()
    for module, kept, _ in log:
        calls.setdefault(module, []).append(kept)


@contextmanager
def replayed(calls: Calls) -> Iterator[None]:
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


def _size(value: Any) -> int:
    """Return how many numbers there are, integers (token ids, masks) not counted."""
    return sum(tensor.numel() for tensor in _tensors(value) if tensor.is_floating_point())


def _without_content(tensor: Tensor) -> Tensor:
    """Return NaN in the place of each number; integers stay."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.new_full((), torch.nan).expand(tensor.shape)


def _mapped(tensor: Tensor, folder: Path) -> Tensor:
    """Return a copy that lies in a file without a name; the system keeps in memory what it can."""
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes == 0 or tensor.untyped_storage().nbytes() < nbytes:  # NaN without content
        return tensor
    with tempfile.NamedTemporaryFile(dir=folder, prefix="grace-bench-") as file:
        file.truncate(nbytes)
        copied = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return copied.view(tensor.shape).copy_(tensor.detach())


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the same with every tensor changed."""
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
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
