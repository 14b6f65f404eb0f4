"""GRACE (Hartvigsen et al., NeurIPS 2023): a codebook in place of one layer.

Inference (Eq. 1): the query is the layer's input at the prompt's last token. If it lies within the
deferral radius of its nearest key, the key's value replaces the layer's output; otherwise the
layer answers as usual. An edit (Algorithm 1) adds, expands or splits keys and trains one value.
Each deviation of the released code is a switch of GraceHyperparameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from grace_bench.codebook.codebook import ZERO_DISTANCE, Codebook
from grace_bench.codebook.file import codebook_from_state, codebook_state, save_codebook
from grace_bench.codebook.keys import KeyInfo, Label
from grace_bench.codebook.lookup import IncrementalLookup
from grace_bench.editors.adapter import AdapterEditor
from grace_bench.editors.base import EditBatch, EditResult
from grace_bench.editors.methods.grace.adapter import GraceAdapter, Retrieval
from grace_bench.editors.methods.grace.hyperparameters import GraceHyperparameters
from grace_bench.editors.training import train_on_edit, train_rows
from grace_bench.errors import EditorError
from grace_bench.models.architecture import layer_inputs
from grace_bench.replay.recording import only_trainable
from grace_bench.store.files import write_parquet
from grace_bench.store.schemas import CODEBOOK

SEED_STRIDE = 1_000_003
"""Between the seeds of two editors' draws, so that steps below it never collide."""


@dataclass(frozen=True)
class TrainedAhead:
    """A value trained before its edit, with the loss before each step."""

    value: Tensor
    losses: list[float]


class GraceEditor(AdapterEditor):
    """General retrieval adaptors for continual editing."""

    name: ClassVar[str] = "grace"
    accumulates_rounding: ClassVar[bool] = False  # nothing else depends on a trained value
    hyperparameters: GraceHyperparameters
    adapter: GraceAdapter

    def setup(self) -> None:
        """Install the adapter; nothing is trained ahead yet."""
        super().setup()
        self._ahead: dict[int, TrainedAhead] = {}

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

    def edit(self, batch: EditBatch) -> EditResult:
        """Change the codebook by Algorithm 1, then train the value that answers the edit."""
        labels = batch.inputs["labels"]
        if len(labels) != 1:
            raise EditorError(f"an edit is one example, this batch has {len(labels)}; split it.")
        before = self.query_layer(batch.inputs)
        info = KeyInfo(
            Label.of(labels, batch.label), tuple(batch.example_ids), batch.step, batch.step
        )
        had_keys = self.n_keys > 0
        with self.codebook.recording(batch.step) as changes:
            branch, target = self._change_codebook(before, info)
            # Possibly nothing answers now, with zero_distance 'ignore' or expand 'none'.
            distances, keys = self.codebook.nearest(before.queries, self.hyperparameters.distance)
            fires = self.codebook.inside(distances, keys, self.hyperparameters.boundary)
            key = int(keys[0])
            ahead = self._ahead.pop(batch.step, None)
            losses: list[float] = []
            if ahead is not None and target == key and bool(fires[0]):
                self.codebook.set_value(key, ahead.value)
                losses = ahead.losses
            elif target is not None or self.hyperparameters.train_on_expand:
                losses = self._train_value(key, fires, batch.inputs)
        return EditResult(
            losses=losses,
            branch=branch,
            key=key if bool(fires[0]) else None,
            nearest_key=int(before.keys[0]) if had_keys else None,
            distance=float(before.distances[0]) if had_keys else None,
            changes=changes,
        )

    def query_layer(self, inputs: Mapping[str, Tensor]) -> Retrieval:
        """Return the nearest key of each input; the model runs up to the layer only."""
        found = layer_inputs(self.model, self.adapter, inputs, self.adapter.nearest)
        if found is None:
            raise EditorError(
                f"layer '{self.layer}' takes no part in the model's answer; choose another layer."
            )
        return found

    def queries(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return the queries (B, d_in); None where they depend on padding (released)."""
        released = self.hyperparameters.query_position == "released"
        return None if released else self.query_layer(inputs).queries

    def recorded_keys(self) -> AbstractContextManager[list[list[int | None]]]:
        """Collect which key answers each row, one list per prompt that begins in the block."""
        return self.adapter.recorded_keys()

    def incremental_lookup(self) -> IncrementalLookup | None:
        """Return a look-up of queries in the codebook as it grows; None for the released rules."""
        settings = self.hyperparameters
        if settings.query_position == "released" or settings.distance != "exact":
            return None
        return IncrementalLookup(self.codebook, settings.boundary)

    @property
    def can_train_ahead(self) -> bool:
        """Whether values can be trained in batches: the query must not depend on padding."""
        settings = self.hyperparameters
        return settings.query_position != "released" and settings.steps > 0

    def train_ahead(self, inputs: Mapping[str, Tensor], steps: Sequence[int]) -> None:
        """Train the values of those edits that will probably add a key, in one batch.

        A new key's value depends only on the edit and on where training starts, so it can be
        trained before it is known whether the key will be added. An edit that takes another branch
        trains as usual.
        """
        self._ahead = {}
        found = self.query_layer(inputs)
        rows = self._likely_new(found, inputs["labels"])
        if not rows:
            return
        values = torch.stack([self._new_value(found, steps[row], row) for row in rows])
        batch = {name: tensor[rows] for name, tensor in inputs.items()}
        with only_trainable(self.model, ()):
            answering = self.adapter.answering_with
            losses = train_rows(self.replay, batch, values, answering, self.hyperparameters)
        for row, value, own in zip(rows, values, losses, strict=True):
            self._ahead[steps[row]] = TrainedAhead(value, own)

    def reuse(self, trained: Mapping[int, tuple[Tensor, Sequence[float]]]) -> None:
        """Take values that edits trained before for keys that they make again."""
        device = self.codebook.values.device
        self._ahead = {
            step: TrainedAhead(value.to(device), list(losses))
            for step, (value, losses) in trained.items()
        }

    def _likely_new(self, found: Retrieval, labels: Tensor) -> list[int]:
        """Return the rows that need a value of their own, given the codebook and earlier rows."""
        settings, codebook = self.hyperparameters, self.codebook
        label = [Label.of(row) for row in labels]
        among = torch.cdist(
            found.queries, found.queries, compute_mode="donot_use_mm_for_euclid_dist"
        )
        rows: list[int] = []
        for row, (key, distance) in enumerate(zip(found.keys, found.distances, strict=True)):
            near = key >= 0 and distance <= settings.radius + codebook.radii[key]
            known = near and codebook.info[key].label.same_as(label[row], settings.label_match)
            same = [r for r in rows if label[r].ids == label[row].ids]
            if not known and not (among[row, same] <= 2 * settings.radius).any():
                rows.append(row)
        return rows

    def draw_value(self, step: int = 0) -> Tensor:
        """Draw the initial value (d_out,) of an edit's key from U[0, 1), as released.

        It depends only on the editor's seed and the edit's step, not on earlier draws.
        """
        seed = (self.generator.initial_seed() * SEED_STRIDE + step) % 2**63
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.dims.d_out, generator=generator)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the codebook as tensors."""
        return codebook_state(self.codebook)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a codebook for the same layer."""
        self.codebook = codebook_from_state(state)

    def resume_state(self) -> dict[str, Tensor]:
        """Return the versions of the values, and the values that were trained ahead."""
        steps = sorted(self._ahead)
        ahead = [self._ahead[step] for step in steps]
        losses = [torch.tensor(one.losses, dtype=torch.float64) for one in ahead]
        return {
            "value_versions": self.codebook.value_versions.clone(),
            "last_version": torch.tensor(self.codebook.last_version),
            "ahead_steps": torch.tensor(steps, dtype=torch.int64),
            "ahead_values": torch.stack([one.value for one in ahead])
            if ahead
            else torch.empty(0, self.dims.d_out),
            "ahead_lengths": torch.tensor([len(one) for one in losses], dtype=torch.int64),
            "ahead_losses": torch.cat(losses) if losses else torch.empty(0, dtype=torch.float64),
        }

    def load_resume_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the state that `resume_state` returned."""
        self.codebook.restore_versions(state["value_versions"], int(state["last_version"]))
        losses = state["ahead_losses"].split(state["ahead_lengths"].tolist())
        values = state["ahead_values"].to(self.codebook.values.device)
        steps = state["ahead_steps"].tolist()
        self._ahead = {
            step: TrainedAhead(value, own.tolist())
            for step, value, own in zip(steps, values, losses, strict=True)
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

    def _change_codebook(self, found: Retrieval, info: KeyInfo) -> tuple[str, int | None]:
        """Add, expand, split or overwrite keys (Algorithm 1, lines 3 to 11).

        Returns:
            The branch taken, and the key that needs a trained value.
        """
        settings, codebook, query = self.hyperparameters, self.codebook, found.queries[0]

        def add(radius: float | Tensor) -> int:
            return codebook.add(query, self._new_value(found, info.changed_at_step), radius, info)

        if len(codebook) == 0:
            return "first", add(settings.radius)
        nearest, distance = int(found.keys[0]), found.distances[0]
        if distance > settings.radius + codebook.radii[nearest]:
            return "add", add(settings.radius)
        if info.label.same_as(codebook.info[nearest].label, settings.label_match):
            answers = bool(found.fires[0])
            grows = not answers and settings.expand != "none"
            if grows:
                codebook.expand(nearest, query, distance, settings.radius, settings.expand)
            changed = grows or settings.train_on_expand
            codebook.note(nearest, info.example_ids, info.changed_at_step, changed)
            return ("expand" if grows else "reuse"), None
        tolerance = ZERO_DISTANCE * codebook.keys[nearest].norm()
        if settings.zero_distance == "overwrite" and distance <= tolerance:
            codebook.overwrite(nearest, self._new_value(found, info.changed_at_step), info)
            return "overwrite", nearest
        radius = codebook.split(
            nearest, distance, settings.radius, settings.split, settings.split_margin
        )
        codebook.note(nearest, (), info.changed_at_step, changed=True)
        return "split", add(radius)

    def _new_value(self, found: Retrieval, step: int, row: int = 0) -> Tensor:
        if self.hyperparameters.value_init == "warm":
            return found.outputs[row].clone()
        return self.draw_value(step).to(found.outputs.device)

    def _train_value(self, key: int, fires: Tensor, inputs: Mapping[str, Tensor]) -> list[float]:
        """Train one key's value on the edit; other values and base weights stay fixed."""
        values = nn.Parameter(self.codebook.values[key][None].clone())
        with only_trainable(self.model, ()), self.adapter.answering_with(values, fires):
            losses = train_on_edit(self.replay, inputs, [values], self.hyperparameters)
        self.codebook.set_value(key, values[0])
        return losses
