"""The adapter that stands in the edited layer's place and looks queries up in the codebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grace_bench.codebook.codebook import Codebook
from grace_bench.editors.adapter import LayerAdapter, at_column, replace_columns
from grace_bench.editors.methods.grace.hyperparameters import GraceHyperparameters
from grace_bench.editors.prompt import PromptLocator


@dataclass(frozen=True)
class Retrieval:
    """The result of looking up a batch of queries, one row per input.

    Args:
        queries: (B, d_in).
        outputs: (B, d_out), the base layer's own output at the query.
        keys: (B,) the nearest keys; -1 without any, and at inference where none answers.
        distances: (B,) to those keys; infinite without any.
        fires: (B,) whether the key answers.
    """

    queries: Tensor
    outputs: Tensor
    keys: Tensor
    distances: Tensor
    fires: Tensor


@dataclass
class CandidateValues:
    """Values in training, one per row: they answer without touching the codebook.

    Args:
        values: (B, d_out).
        fires: (B,) whether a key answers the row at all.
        replaced: (B, L) columns that take the value; set by the first call.
    """

    values: nn.Parameter
    fires: Tensor
    replaced: Tensor | None = None


class GraceAdapter(LayerAdapter):
    """Replaces the layer's output where a key of the codebook answers the query."""

    def __init__(
        self,
        base_layer: nn.Module,
        locator: PromptLocator,
        codebook: Codebook,
        settings: GraceHyperparameters,
    ) -> None:
        super().__init__(base_layer, locator, settings)
        self.codebook = codebook
        self._candidates: CandidateValues | None = None
        self._recorded: list[list[int | None]] | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, L, d_in) to (B, L, d_out), or (B, d_in) to (B, d_out)."""
        output = self.base_layer(hidden)
        candidates = self._candidates
        if candidates is not None:
            if candidates.replaced is None:  # every step has the same inputs
                candidates.replaced = self.view(hidden).replaced & candidates.fires[:, None]
            return replace_columns(output, candidates.values, candidates.replaced)
        if len(self.codebook) == 0:
            return output
        view = self.view(hidden)
        if not view.continues:
            query, own = at_column(hidden, view.column), at_column(output, view.column)
            view.memo["retrieval"] = self._retrieve(query, own)
        retrieval = view.memo.get("retrieval")
        if retrieval is None:  # the codebook was empty when the prompt was read
            return output
        if self._recorded is not None and not view.continues:
            pairs = zip(retrieval.keys.tolist(), retrieval.fires.tolist(), strict=True)
            self._recorded.append([key if fires else None for key, fires in pairs])
        values = self.codebook.values[retrieval.keys]  # (B, d_out)
        return replace_columns(output, values, view.replaced & retrieval.fires[:, None])

    @torch.no_grad()
    def nearest(self, hidden: Tensor) -> Retrieval:
        """Return the nearest key for each row of the layer's input, whether it answers or not."""
        column, output = self.view(hidden).column, self.base_layer(hidden)
        return self._retrieve(at_column(hidden, column), at_column(output, column), nearest=True)

    @contextmanager
    def answering_with(self, values: nn.Parameter, fires: Tensor | None = None) -> Iterator[None]:
        """Let values (B, d_out) answer the B rows of each call, where `fires` (B,) says so."""
        everywhere = torch.ones(len(values), dtype=torch.bool, device=values.device)
        self._candidates = CandidateValues(values, everywhere if fires is None else fires)
        try:
            yield
        finally:
            self._candidates = None

    @contextmanager
    def recorded_keys(self) -> Iterator[list[list[int | None]]]:
        """Collect which key answers each row, one list per prompt that begins in the block."""
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._recorded = None

    @torch.no_grad()
    def _retrieve(self, queries: Tensor, outputs: Tensor, nearest: bool = False) -> Retrieval:
        queries, outputs = queries.detach().float(), outputs.detach().float()
        if len(self.codebook) == 0:
            none = queries.new_full((len(queries),), torch.inf)
            return Retrieval(queries, outputs, none.int().fill_(-1), none, none < 0)
        codebook, settings = self.codebook.to(queries.device), self.settings
        if settings.distance == "exact" and not nearest:
            distances, keys = codebook.answering(queries, settings.boundary)
            return Retrieval(queries, outputs, keys, distances, keys >= 0)
        distances, keys = codebook.nearest(queries, settings.distance)
        fires = codebook.inside(distances, keys, settings.boundary)
        return Retrieval(queries, outputs, keys, distances, fires)
