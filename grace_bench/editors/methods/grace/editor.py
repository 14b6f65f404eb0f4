"""GRACE (Hartvigsen et al., NeurIPS 2023): a codebook in the place of one layer.

Inference (Eq. 1): the query is the layer's input at the prompt's last token; if it lies within
the deferral radius of its nearest key, the key's value replaces the layer's output, else the
layer does what it always did. An edit (Algorithm 1) adds, expands or splits keys and trains one
value. Where the released code does something else, a switch of GraceHyperparameters says so.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from grace_bench.codebook.codebook import Codebook, KeyInfo, Label
from grace_bench.codebook.file import codebook_from_state, codebook_state, save_codebook
from grace_bench.codebook.lookup import TrackedQueries
from grace_bench.editors.adapter import (
    AdapterEditor,
    LayerAdapter,
    at_column,
    replace_columns,
)
from grace_bench.editors.base import EditBatch, EditResult
from grace_bench.editors.early_stop import EarlyStop
from grace_bench.editors.training import train_on_edit, train_rows
from grace_bench.errors import EditorError
from grace_bench.replay.recording import only_trainable
from grace_bench.store.files import write_parquet
from grace_bench.store.schemas import CODEBOOK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from grace_bench.editors.methods.grace.hyperparameters import GraceHyperparameters
    from grace_bench.editors.prompt import PromptLocator

ZERO_DISTANCE = 1e-5
"""Relative to the key's norm: nearer than this, two inputs are the same but for rounding."""

SEED_STRIDE = 1_000_003
"""Between the seeds of two editors' draws, so that steps below it never meet."""


@dataclass
class Retrieval:
    """What the last call of the layer that began a prompt looked up; rows are inputs.

    Args:
        queries: (B, d_in).
        outputs: (B, d_out), the base layer's own output at the query.
        keys: (B,) the nearest keys; -1 without any, and at inference where none answers.
        distances: (B,) to them; infinite without any.
        fires: (B,) whether the key answers.
    """

    queries: Tensor
    outputs: Tensor
    keys: Tensor
    distances: Tensor
    fires: Tensor


class _QuerySeen(Exception):
    """The layer has seen its input; what the model would do with the output is not wanted."""


@dataclass(frozen=True)
class Prepared:
    """A value trained ahead of its edit, and the loss before each step."""

    value: Tensor
    losses: list[float]


@dataclass
class Trial:
    """Values in training, one a row: they answer without touching the codebook.

    Args:
        values: (B, d_out).
        fires: (B,) whether a key answers the row at all.
        replaced: (B, L) columns that take the value; worked out in the first call.
    """

    values: nn.Parameter
    fires: Tensor
    replaced: Tensor | None = None


class GraceAdapter(LayerAdapter):
    """Looks the query up in a codebook and replaces the layer's output where a key answers."""

    def __init__(
        self,
        base_layer: nn.Module,
        locator: PromptLocator,
        codebook: Codebook,
        settings: GraceHyperparameters,
    ) -> None:
        super().__init__(base_layer, locator, settings)
        self.codebook = codebook
        self.observing = False
        self.retrieval: Retrieval | None = None
        self.trial: Trial | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, L, d_in) to (B, L, d_out), or (B, d_in) to (B, d_out)."""
        output = self.base_layer(hidden)
        if self.trial is not None:
            return self._try(output, hidden, self.trial)
        if len(self.codebook) == 0 and not self.observing:
            return output
        view = self.view(hidden)
        if not view.continues:
            query, own = at_column(hidden, view.column), at_column(output, view.column)
            self.retrieval = view.memo["retrieval"] = self._retrieve(query, own)
        if self.observing:
            raise _QuerySeen
        # Without a memo there was no key yet when the prompt was read.
        retrieval = view.memo.get("retrieval")
        if retrieval is None or len(self.codebook) == 0:
            return output
        values = self.codebook.values[retrieval.keys]  # (B, d_out)
        return replace_columns(output, values, view.replaced & retrieval.fires[:, None])

    def _try(self, output: Tensor, hidden: Tensor, trial: Trial) -> Tensor:
        """Answer with the values in training; the same inputs come at every step."""
        if trial.replaced is None:
            trial.replaced = self.view(hidden).replaced & trial.fires[:, None]
        return replace_columns(output, trial.values, trial.replaced)

    @torch.no_grad()
    def _retrieve(self, queries: Tensor, outputs: Tensor) -> Retrieval:
        queries, outputs = queries.detach().float(), outputs.detach().float()
        if len(self.codebook) == 0:
            none = queries.new_full((len(queries),), torch.inf)
            return Retrieval(queries, outputs, none.int().fill_(-1), none, none < 0)
        codebook = self.codebook.to(queries.device)
        boundary = self.settings.boundary
        if not self.observing and self.settings.distance == "exact":
            distances, keys = codebook.answering(queries, boundary)
            return Retrieval(queries, outputs, keys, distances, keys >= 0)
        distances, keys = codebook.nearest(queries, self.settings.distance)
        fires = codebook.inside(distances, keys, boundary)
        return Retrieval(queries, outputs, keys, distances, fires)


class GraceEditor(AdapterEditor):
    """General retrieval adaptors for continual editing."""

    name: ClassVar[str] = "grace"
    rounding_grows: ClassVar[bool] = False  # no decision, and no other value, depends on a value
    hyperparameters: GraceHyperparameters
    adapter: GraceAdapter

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        hyperparameters: GraceHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(model, layer, hyperparameters, generator)
        self._prepared: dict[int, Prepared] = {}

    def make_adapter(self, base_layer: nn.Module) -> GraceAdapter:
        """Return the adapter with an empty codebook."""
        device = base_layer.weight.device
        codebook = Codebook(self.dims.d_in, self.dims.d_out, device)
        return GraceAdapter(base_layer, self.locator, codebook, self.hyperparameters)

    @property
    def codebook(self) -> Codebook:
        """The codebook; replacing it replaces all edits."""
        return self.adapter.codebook

    @codebook.setter
    def codebook(self, codebook: Codebook) -> None:
        if (codebook.d_in, codebook.d_out) != (self.dims.d_in, self.dims.d_out):
            raise EditorError(
                f"the codebook is for a layer of {codebook.d_in} -> {codebook.d_out}, but layer "
                f"'{self.layer}' is {self.dims.d_in} -> {self.dims.d_out}; choose the right layer."
            )
        self.adapter.codebook = codebook.to(self.codebook.keys.device)

    @property
    def n_keys(self) -> int:
        """Number of keys."""
        return len(self.codebook)

    @property
    def retrieval(self) -> Retrieval | None:
        """What the model's last call looked up; None before the first key."""
        return self.adapter.retrieval

    def edit(self, batch: EditBatch) -> EditResult:
        """Change the codebook by Algorithm 1, then train the value that answers the edit."""
        labels = batch.inputs["labels"]
        if len(labels) != 1:
            raise EditorError(f"an edit is one example, this batch has {len(labels)}; split it.")
        seen = self.observe(batch.inputs)
        info = KeyInfo(
            Label.of(labels, batch.label), tuple(batch.example_ids), batch.step, batch.step
        )
        had_keys = self.n_keys > 0
        branch, target = self._change_codebook(seen, info)
        # What answers now: with zero_distance 'ignore' or expand 'none' that may be nothing.
        distances, keys = self.codebook.nearest(seen.queries, self.hyperparameters.distance)
        fires = self.codebook.inside(distances, keys, self.hyperparameters.boundary)
        key = int(keys[0])
        prepared = self._prepared.pop(batch.step, None)
        losses: list[float] = []
        if prepared is not None and target == key and bool(fires[0]):
            self.codebook.set_value(key, prepared.value)
            losses = prepared.losses
        elif target is not None or self.hyperparameters.train_on_expand:
            losses = self._train_value(key, fires, batch.inputs)
        return EditResult(
            losses=losses,
            branch=branch,
            key=key if bool(fires[0]) else None,
            nearest_key=int(seen.keys[0]) if had_keys else None,
            distance=float(seen.distances[0]) if had_keys else None,
        )

    @torch.no_grad()
    def observe(self, inputs: Mapping[str, Tensor]) -> Retrieval:
        """Return what the layer would look up for `inputs`; the model runs up to the layer."""
        self.adapter.observing = True
        try:
            self.model(**inputs)
        except _QuerySeen:
            return self.adapter.retrieval
        finally:
            self.adapter.observing = False
        raise EditorError(
            f"layer '{self.layer}' takes no part in the model's answer; choose another layer."
        )

    def queries(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return the queries (B, d_in); None where padding has a part in them (released)."""
        released = self.hyperparameters.query_position == "released"
        return None if released else self.observe(inputs).queries

    def answering_keys(self, rows: int) -> list[int | None]:
        """Return the key that answered each row of the model's last call; None where none did."""
        if self.n_keys == 0 or self.retrieval is None:
            return [None] * rows
        pairs = zip(self.retrieval.keys.tolist(), self.retrieval.fires.tolist(), strict=True)
        return [key if fires else None for key, fires in pairs]

    def track(self) -> TrackedQueries | None:
        """Return what tells which value answers each query; None for the released rules."""
        settings = self.hyperparameters
        if settings.query_position == "released" or settings.distance != "exact":
            return None
        return TrackedQueries(self.codebook, settings.boundary)

    @property
    def can_prepare(self) -> bool:
        """Whether values can be trained in batches: padding must have no part in the query."""
        settings = self.hyperparameters
        return settings.query_position != "released" and settings.steps > 0

    def prepare(self, inputs: Mapping[str, Tensor], steps: Sequence[int]) -> None:
        """Train the values of the edits that probably make a key, in one batch.

        What a new key's value becomes depends on the edit and on where training starts, on no
        other key. So it can be trained before it is known whether the key will be made; an edit
        that turns out otherwise trains as if nothing had been prepared.
        """
        self._prepared = {}
        seen = self.observe(inputs)
        rows = self._likely_new(seen, inputs["labels"])
        if len(rows) == 0:
            return
        values = torch.stack([self._new_value(seen, steps[row], row) for row in rows])
        batch = {name: tensor[rows] for name, tensor in inputs.items()}
        with only_trainable(self.model, ()), self._trying() as place:
            losses = train_rows(self.prefix, batch, values, place, **self._training())
        for row, value, told in zip(rows, values, losses, strict=True):
            self._prepared[steps[row]] = Prepared(value, told)

    def _likely_new(self, seen: Retrieval, labels: Tensor) -> list[int]:
        """Return the rows that need a value of their own, by the codebook and the rows before."""
        settings, codebook = self.hyperparameters, self.codebook
        label = [Label.of(row) for row in labels]
        among = torch.cdist(seen.queries, seen.queries, compute_mode="donot_use_mm_for_euclid_dist")
        rows: list[int] = []
        for row, (key, distance) in enumerate(zip(seen.keys, seen.distances, strict=True)):
            near = key >= 0 and distance <= settings.radius + codebook.radii[key]
            known = near and codebook.info[key].label.same_as(label[row], settings.label_match)
            same = [r for r in rows if label[r].ids == label[row].ids]
            if not known and not (among[row, same] <= 2 * settings.radius).any():
                rows.append(row)
        return rows

    def draw_value(self, step: int = 0) -> Tensor:
        """Draw a value (d_out,) for the key of an edit: U[0, 1), as released.

        It depends on the editor's seed and the edit's step alone, not on what was drawn before.
        """
        seed = (self.generator.initial_seed() * SEED_STRIDE + step) % 2**63
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.dims.d_out, generator=generator)

    def remove_key(self, key: int) -> None:
        """Roll one key back; inputs it answered fall to other keys or to the base layer."""
        self.codebook.remove(key)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the codebook as tensors."""
        return codebook_state(self.codebook)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over another codebook for the same layer."""
        self.codebook = codebook_from_state(state)

    def resume_state(self) -> dict[str, Tensor]:
        """Return the stamps of the values, and the values that were trained ahead."""
        steps = sorted(self._prepared)
        ahead = [self._prepared[step] for step in steps]
        losses = [torch.tensor(one.losses, dtype=torch.float64) for one in ahead]
        return {
            "stamps": self.codebook.stamps.clone(),
            "last_stamp": torch.tensor(self.codebook.last_stamp),
            "prepared_steps": torch.tensor(steps, dtype=torch.int64),
            "prepared_values": torch.stack([one.value for one in ahead])
            if ahead
            else torch.empty(0, self.dims.d_out),
            "prepared_lengths": torch.tensor([len(one) for one in losses], dtype=torch.int64),
            "prepared_losses": torch.cat(losses) if losses else torch.empty(0, dtype=torch.float64),
        }

    def load_resume_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over stamps and values trained ahead."""
        self.codebook.restore_stamps(state["stamps"], int(state["last_stamp"]))
        losses = state["prepared_losses"].split(state["prepared_lengths"].tolist())
        values = state["prepared_values"].to(self.codebook.values.device)
        self._prepared = {
            step: Prepared(value, told.tolist())
            for step, value, told in zip(
                state["prepared_steps"].tolist(), values, losses, strict=True
            )
        }

    def save(self, folder: Path, model_hash: str) -> list[str]:
        """Write the codebook for machines (safetensors) and for people (Parquet)."""
        save_codebook(
            folder / "codebook.safetensors",
            self.codebook,
            layer=self.layer,
            model=model_hash,
            settings=self.hyperparameters.model_dump(mode="json"),
        )
        write_parquet(folder / "codebook.parquet", self.codebook.rows(), CODEBOOK)
        return ["codebook.safetensors", "codebook.parquet"]

    def _change_codebook(self, seen: Retrieval, info: KeyInfo) -> tuple[str, int | None]:
        """Add, expand, split or overwrite keys (Algorithm 1, lines 3 to 11).

        Returns:
            What was done, and the key that got a new value.
        """
        settings, codebook, query = self.hyperparameters, self.codebook, seen.queries[0]
        if len(codebook) == 0:
            return "first", codebook.add(query, self._value_of(seen, info), settings.radius, info)
        nearest, distance = int(seen.keys[0]), seen.distances[0]
        if distance > settings.radius + codebook.radii[nearest]:
            return "add", codebook.add(query, self._value_of(seen, info), settings.radius, info)
        if info.label.same_as(codebook.info[nearest].label, settings.label_match):
            grows = (
                not codebook.inside(distance, torch.tensor(nearest), settings.boundary)
                and settings.expand != "none"
            )
            if grows:
                codebook.expand(nearest, query, distance, settings.radius, settings.expand)
            changed = grows or settings.train_on_expand
            codebook.note(nearest, info.example_ids, info.changed_at_step, changed)
            return ("expand" if grows else "reuse"), None
        tolerance = ZERO_DISTANCE * codebook.keys[nearest].norm()
        if settings.zero_distance == "overwrite" and distance <= tolerance:
            codebook.overwrite(nearest, self._value_of(seen, info), info)
            return "overwrite", nearest
        radius = codebook.split(
            nearest, distance, settings.radius, settings.split, settings.split_margin
        )
        codebook.note(nearest, (), info.changed_at_step, changed=True)
        return "split", codebook.add(query, self._value_of(seen, info), radius, info)

    def _value_of(self, seen: Retrieval, info: KeyInfo) -> Tensor:
        return self._new_value(seen, info.changed_at_step, 0)

    def _new_value(self, seen: Retrieval, step: int, row: int) -> Tensor:
        if self.hyperparameters.value_init == "warm":
            return seen.outputs[row].clone()
        return self.draw_value(step).to(seen.outputs.device)

    def _train_value(self, key: int, fires: Tensor, inputs: Mapping[str, Tensor]) -> list[float]:
        """Train one key's value on the edit; no other value and no base weight moves."""
        values = nn.Parameter(self.codebook.values[key][None].clone())
        with only_trainable(self.model, ()), self._trying(fires) as place:
            place(values)
            losses = train_on_edit(self.prefix, inputs, [values], **self._training())
        self.codebook.set_value(key, values[0])
        return losses

    def _training(self) -> dict[str, Any]:
        settings = self.hyperparameters
        return {
            "learning_rate": settings.learning_rate,
            "steps": settings.steps,
            "early_stop": EarlyStop.of(settings),
        }

    @contextmanager
    def _trying(self, fires: Tensor | None = None) -> Iterator[Callable[[nn.Parameter], None]]:
        """Give a function that lets values (B, d_out) answer the B rows, where `fires` (B,)."""

        def place(values: nn.Parameter) -> None:
            everywhere = torch.ones(len(values), dtype=torch.bool, device=values.device)
            self.adapter.trial = Trial(values, everywhere if fires is None else fires)

        try:
            yield place
        finally:
            self.adapter.trial = None
