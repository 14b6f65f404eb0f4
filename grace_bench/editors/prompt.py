"""Find the prompt in every call of an edited layer.

A query is the layer's input at the prompt's last token. The model's arguments (attention mask,
labels, cache) determine the prompt, but a layer deep inside never sees them. So a PromptLocator
hooks every Hugging Face model above the layer, and users can call `model(**batch)` and
`model.generate(**prompt)` as usual. The prompt is

- in encoders (BERT, T5's encoder): all tokens except padding;
- in the decoder of an encoder-decoder: its start token, at position 0;
- in a causal language model with labels: up to the position before the first label that isn't
  -100; without labels: all tokens of the first call except padding.

While a causal model generates, the prompt stays that of the first call, with a cache (later calls
contain none of it) and without (every call begins with it).
"""

from __future__ import annotations

import inspect
import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grace_bench.codebook.keys import IGNORED
from grace_bench.errors import EditorError
from grace_bench.models.architecture import find_layer, layer_name


@dataclass
class Prompt:
    """The prompt within one call of the edited layer.

    Args:
        real: (B, L) columns of this call that are not padding.
        query: (B,) column of the prompt's last token, in the call that began the prompt.
        released_query: (B,) the column that the released code would use (G2, G13).
        continues: an earlier call had the query; `memo` holds what was decided there.
        cached: earlier columns are in a cache.
        memo: shared by the call with the query and all that continue it.
    """

    real: Tensor
    query: Tensor
    released_query: Tensor
    continues: bool = False
    cached: bool = False
    memo: dict[str, Any] = field(default_factory=dict)

    def carry(self, mask: Tensor) -> Tensor:
        """Convert a mask (B, P) over the first call's columns to this call's (B, L).

        With a cache none of those columns reappears; without, this call begins with them.
        """
        carried = torch.zeros_like(self.real)
        if not self.cached:
            carried[:, : mask.shape[1]] = mask
        return carried


class PromptLocator:
    """Listens to the models above a layer and locates the prompt.

    Args:
        model: the top model.
        layer: dotted name of the edited module.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.model = model
        self._name = layer_name(layer)
        self._role = _role(model, find_layer(model, layer))
        self._frames: list[dict[str, Any]] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._generate: Any = None
        self._generating = False
        self._started: Prompt | None = None
        self._cache: weakref.ReferenceType[Any] | None = None

    def attach(self) -> None:
        """Start listening."""
        for module in _listening_posts(self.model, self._name):
            before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
            after = module.register_forward_hook(self._leave, always_call=True)
            self._handles += [before, after]
        if self._role == "causal":
            # Without a cache, a call doesn't distinguish generated tokens from the prompt's, so
            # generate() itself marks where a prompt begins and ends.
            self._generate = self.model.generate
            self.model.generate = self._generate_within

    def detach(self) -> None:
        """Stop listening and restore the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._generate is not None:
            del self.model.generate
            self._generate = None

    def locate(self, hidden: Tensor) -> Prompt:
        """Return where the prompt is in the layer's input (B, L, d), or (B, d) of a pooled layer.

        Raises:
            EditorError: the attention mask is unusable, or the call continues one with other rows.
        """
        frame = self._frames[-1] if self._frames else {}
        rows, columns = hidden.shape[0], hidden.shape[1] if hidden.dim() == 3 else 1
        # A pooled layer sees one vector a row, a decoder's start token is never padding, and the
        # mask in sight of a decoder may be the encoder's.
        masked = hidden.dim() == 3 and self._role != "decoder"
        mask = frame.get("attention_mask") if masked else None
        real = _real(mask, rows, columns, hidden.device)
        started = self._continued(frame)
        if started is not None:
            if len(started.query) != rows:
                raise EditorError(
                    f"the batch changed from {len(started.query)} to {rows} rows during a "
                    "generation, so the edited model cannot match the rows; start again."
                )
            cached = frame.get("past_length", 0) > 0
            return replace(started, real=real, continues=True, cached=cached)
        prompt = _begin(self._role, real, frame.get("labels"))
        if self._role != "encoder":
            self._started = prompt
        return prompt

    def _continued(self, frame: dict[str, Any]) -> Prompt | None:
        if self._role == "encoder" or self._started is None:
            return None
        if self._generating:
            return self._started
        cache = frame.get("past_key_values")
        known = self._cache is not None and cache is not None and cache is self._cache()
        return self._started if known and frame["past_length"] > 0 else None

    def _generate_within(self, *args: Any, **kwargs: Any) -> Any:
        self._started, self._generating = None, True
        try:
            return self._generate(*args, **kwargs)
        finally:
            self._started, self._generating = None, False

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            kwargs = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        frame = dict(self._frames[-1]) if self._frames else {}
        for name in ("attention_mask", "labels", "past_key_values"):
            if kwargs.get(name) is not None:
                frame[name] = kwargs[name]
        # Read the cache's length now: attention layers fill it during the call.
        if not self._frames:
            cache = frame.get("past_key_values")
            frame["past_length"] = 0 if cache is None else int(cache.get_seq_length())
        self._frames.append(frame)

    def _leave(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        self._frames.pop()
        if not self._frames and self._role != "encoder":
            # A call that continues this cache continues this prompt.
            cache = getattr(output, "past_key_values", None)
            self._cache = None if cache is None else weakref.ref(cache)


def _role(model: nn.Module, layer: nn.Module) -> str:
    """Return encoder, decoder (of an encoder-decoder) or causal."""
    if not isinstance(model, PreTrainedModel):
        return "encoder"
    if model.config.is_encoder_decoder:
        decoder = model.get_decoder()
        return "decoder" if any(part is layer for part in decoder.modules()) else "encoder"
    return "causal" if model.can_generate() else "encoder"


def _listening_posts(model: nn.Module, name: str) -> list[nn.Module]:
    """Return the top model and every Hugging Face model on the way down to `name`."""
    parts = name.split(".")
    above = [model.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]
    return [model, *(module for module in above if isinstance(module, PreTrainedModel))]


def _real(mask: Any, rows: int, columns: int, device: torch.device) -> Tensor:
    """Return (B, L) of the columns that are not padding; no mask means no padding."""
    if mask is None:
        return torch.ones(rows, columns, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < columns:
        raise EditorError(
            "the edited layer cannot distinguish padding from tokens; pass the model an attention "
            f"mask of shape (batch, tokens) for its {columns} tokens."
        )
    # With a cache, the mask also covers cached tokens; this call's come last.
    return mask[:, -columns:].to(device).bool().expand(rows, columns)


def last_column(mask: Tensor) -> Tensor:
    """Return the column (B,) of each row's last True; the last column where there is none."""
    columns = mask.shape[1]
    last = columns - 1 - mask.flip(1).int().argmax(1)
    return torch.where(mask.any(1), last, columns - 1)


def first_column(mask: Tensor) -> Tensor:
    """Return the column (B,) of each row's first True; 0 where there is none."""
    return mask.int().argmax(1)


def _begin(role: str, real: Tensor, labels: Tensor | None) -> Prompt:
    """Return the prompt of a call that begins one."""
    columns = real.shape[1]
    query = last_column(real)
    released = torch.full_like(query, columns - 1)
    if role == "decoder":
        query = torch.zeros_like(query)
        released = query
    elif role == "causal" and labels is not None and labels.shape == real.shape:
        labelled = (labels.to(real.device) != IGNORED) & real
        # Label t is predicted at t - 1, so the first column's label is never predicted; the prompt
        # has at least the row's first token.
        first_token = first_column(real)
        before_label = torch.maximum(labelled.int().argmax(1) - 1, first_token)
        query = torch.where(labelled.any(1), before_label, query)
        count = (labels.to(real.device) == IGNORED).sum(1)
        released = torch.where(count > 0, count - 1, columns - 1)
    return Prompt(real, query, released)
