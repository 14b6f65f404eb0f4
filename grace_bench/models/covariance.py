"""The second moment C = E[k k^T] of a layer's inputs over texts, which ROME preserves.

    covariance = compute_covariance(model, ids_of, layer, texts, model_hash=loaded.sha256)
    save_covariance(path, covariance)
    covariance = load_covariance(path, layer=layer, model=loaded.sha256)

It is uncentred, over all tokens of all texts, without padding. The layer must see tokens; in an
encoder-decoder it must be in the encoder. The same covariance gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from grace_bench.errors import DataError, ModelError
from grace_bench.models.architecture import (
    find_layer,
    layer_dims,
    layer_inputs,
    layer_name,
)
from grace_bench.models.positions import usable_positions
from grace_bench.store.tensors import read_tensors, reading, write_tensors

FORMAT_VERSION = 1
LONGEST = 1024
"""Tokens in one sequence, unless the model has fewer positions."""

DTYPES = (torch.float32, torch.float64)
_ENTRY = "grace_bench.covariance"
_TENSOR = "second_moment"


@dataclass(frozen=True)
class Covariance:
    """A second moment and its origin.

    Args:
        second_moment: (d_in, d_in), the mean of k k^T, in the type of the sums.
        layer: dotted name of the module whose inputs these are.
        model: identity of the model, as the caller gave it.
        corpus: sha256 over the texts, in order.
        n_texts: number of texts.
        n_tokens: number of tokens, over which it is the mean.
    """

    second_moment: Tensor
    layer: str
    model: str
    corpus: str
    n_texts: int
    n_tokens: int

    @property
    def dtype(self) -> str:
        """The type of the sums: float32 or float64."""
        return str(self.second_moment.dtype).removeprefix("torch.")


def compute_covariance(
    model: nn.Module,
    ids_of: Callable[[str], list[int]],
    layer: str,
    texts: Iterable[str],
    *,
    model_hash: str,
    batch_size: int = 8,
    max_length: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Covariance:
    """Return the second moment of the inputs of `layer` over the tokens of `texts`.

    A text longer than `max_length` continues in another sequence, so each token counts once.

    Args:
        model: in eval mode.
        ids_of: returns the token ids of a text (`Texts.ids`).
        layer: name of a linear layer.
        texts: read once, in batches.
        model_hash: identity of the model, which `load_covariance` checks.
        batch_size: sequences in one call; affects only rounding.
        max_length: tokens in one sequence at most; None: the model's positions, at most 1024.
        dtype: of the sums, float32 or float64.

    Raises:
        ModelError: the model lacks the layer or has too few positions, or the layer does not see
            tokens one by one.
        DataError: the texts have no token.
    """
    if dtype not in DTYPES:
        raise ModelError(f"a covariance is summed in float32 or float64, not in {dtype}.")
    module = find_layer(model, layer)
    d_in = layer_dims(module, layer).d_in
    total = torch.zeros(d_in, d_in, dtype=dtype, device=module.weight.device)
    corpus = _Corpus(ids_of, _sequence_length(model, max_length))
    sequences = corpus.sequences(texts)
    n_tokens = 0
    while batch := list(islice(sequences, batch_size)):
        keys = _token_inputs(model, layer, batch).to(dtype)  # (tokens, d_in)
        total += keys.T @ keys
        n_tokens += len(keys)
    if n_tokens == 0:
        raise DataError(f"the {corpus.n_texts} texts for a covariance have no token; use others.")
    second_moment = (total / n_tokens).cpu()
    if not second_moment.isfinite().all():
        raise ModelError(
            f"layer '{layer}' has inputs that are not finite, so it has no covariance; run the "
            "model in float32."
        )
    return Covariance(
        second_moment,
        layer=layer_name(layer),
        model=model_hash,
        corpus=corpus.digest.hexdigest(),
        n_texts=corpus.n_texts,
        n_tokens=n_tokens,
    )


class _Corpus:
    """Turns texts into sequences of token ids; counts and hashes the texts."""

    def __init__(self, ids_of: Callable[[str], list[int]], longest: int) -> None:
        self.ids_of = ids_of
        self.longest = longest
        self.digest = hashlib.sha256()
        self.n_texts = 0

    def sequences(self, texts: Iterable[str]) -> Iterator[Tensor]:
        """Yield each text's ids (L,), in pieces of at most `longest`."""
        for text in texts:
            content = text.encode("utf-8", errors="surrogatepass")
            self.digest.update(len(content).to_bytes(8, "big") + content)
            self.n_texts += 1
            ids = torch.tensor(self.ids_of(text), dtype=torch.long)
            yield from (piece for piece in ids.split(self.longest) if len(piece))


def _sequence_length(model: nn.Module, max_length: int | None) -> int:
    """Return the tokens of one sequence; raise ModelError if the model can't take as many."""
    positions = usable_positions(model.config)
    length = min(positions or LONGEST, LONGEST) if max_length is None else max_length
    if length < 1 or (positions is not None and length > positions):
        raise ModelError(
            f"sequences of {length} tokens do not fit into the model's {positions} positions; "
            "change max_length."
        )
    return length


def _token_inputs(model: nn.Module, layer: str, rows: list[Tensor]) -> Tensor:
    """Return the layer's inputs (tokens, d_in) at all tokens of the rows (L,), in order."""
    device = next(model.parameters()).device
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
    ids = pad_sequence(rows, batch_first=True).to(device)
    inputs = {"input_ids": ids, "attention_mask": mask}
    try:
        hidden = layer_inputs(model, find_layer(model, layer), inputs)
    except ValueError as error:  # a decoder that lacks its own input
        raise ModelError(f"layer '{layer}' is not reached from input ids alone: {error}") from error
    if hidden is None or hidden.dim() != 3 or hidden.shape[:2] != mask.shape:
        raise ModelError(
            f"layer '{layer}' does not see the tokens of its model's input one by one, so it has "
            "no covariance; name a layer within a block."
        )
    return hidden[mask.bool()]


def save_covariance(path: Path | str, covariance: Covariance) -> None:
    """Write a covariance to `path` atomically."""
    header = {
        "format": FORMAT_VERSION,
        "layer": covariance.layer,
        "model": covariance.model,
        "corpus": covariance.corpus,
        "n_texts": covariance.n_texts,
        "n_tokens": covariance.n_tokens,
        "dtype": covariance.dtype,
    }
    write_tensors(path, {_TENSOR: covariance.second_moment}, _ENTRY, header)


def load_covariance(
    path: Path | str, *, layer: str | None = None, model: str | None = None, d_in: int | None = None
) -> Covariance:
    """Read a covariance, and check its layer, model and width if they are given.

    Raises:
        DataError: the file is missing, damaged, not a covariance, or for something else.
    """
    covariance = _read(path)
    wanted = None if layer is None else layer_name(layer)
    for what, given, found in (
        ("layer", wanted, covariance.layer),
        ("model", model, covariance.model),
        ("width", d_in, len(covariance.second_moment)),
    ):
        if given is not None and given != found:
            raise DataError(
                f"{path}: made for {what} '{found}', not for '{given}'; compute it for that {what} "
                "or choose another file."
            )
    return covariance


def _read(path: Path | str) -> Covariance:
    with reading(path, "covariance"):
        header, tensors = read_tensors(path, _ENTRY, FORMAT_VERSION)
        second_moment = tensors[_TENSOR]
        shape = tuple(second_moment.shape)
        if len(shape) != 2 or shape[0] != shape[1] or second_moment.dtype not in DTYPES:
            raise ValueError(f"its matrix is {shape} {second_moment.dtype}")
        if not second_moment.isfinite().all():
            raise ValueError("its matrix is not finite")
        names = {"layer": str, "model": str, "corpus": str, "n_texts": int, "n_tokens": int}
        for name, kind in names.items():
            if type(header[name]) is not kind:
                raise ValueError(f"its header has no usable '{name}'")
        return Covariance(second_moment, **{name: header[name] for name in names})
