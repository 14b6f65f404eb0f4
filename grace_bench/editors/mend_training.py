"""Training MEND's transform before any run, on examples that no run edits or scores.

Every training example is an edit to make: its label is replaced by that of another example of the
same relation, which the model does not say. After the update the model should say it, for another
phrasing too where there is one, and should answer other examples as before (Mitchell et al. 2022,
Eq. 4): loss = edit_weight * NLL(edit) + KL(model before || model after) on other examples.
"""

from __future__ import annotations

import logging
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from grace_bench.editors.mend import GradientTransform, is_transposed, token_gradients
from grace_bench.editors.training import is_causal
from grace_bench.errors import DataError, EditorError
from grace_bench.models.layers import find_layer, layer_dims, layer_name
from grace_bench.records import atomic_path

if TYPE_CHECKING:
    from pathlib import Path

    from grace_bench.assets import AssetRequest
    from grace_bench.editors.hyperparameters import MendHyperparameters

logger = logging.getLogger(__name__)

TRANSFORM = "mend.safetensors"
FEWEST = 8
"""Training examples; with fewer there is nothing to hold out."""

Row = dict[str, Any]
Encode = Callable[[Sequence[Row]], dict[str, Tensor]]


@dataclass(frozen=True)
class TrainingEdit:
    """One edit to train on.

    Args:
        edit: the example with its wanted label.
        outer: another phrasing with the same label, or the edit itself.
        local: another fact's example, to be answered as before.
    """

    edit: Row
    outer: Row
    local: Row


def training_edits(rows: Sequence[Row], seed: int) -> Iterator[TrainingEdit]:
    """Yield edits without end, in a random order of the rows that the seed fixes.

    Raises:
        DataError: no example has a label that another of its relation could take over.
    """
    generator = random.Random(f"mend-{seed}")
    labels: dict[Any, set[str]] = defaultdict(set)
    phrasings: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        labels[row.get("relation")].add(row["label"])
        phrasings[row["fact_id"]].append(row)
    usable = [row for row in rows if len(labels[row.get("relation")]) > 1]
    if not usable or len(phrasings) < 2:
        raise DataError("MEND finds no two labels of one relation to train on; give it more data.")
    others = {relation: sorted(found) for relation, found in labels.items()}
    while True:
        for row in generator.sample(usable, len(usable)):
            wanted = generator.choice(others[row.get("relation")])
            if wanted == row["label"]:
                continue
            outer = generator.choice(phrasings[row["fact_id"]])
            local = generator.choice(rows)
            if local["fact_id"] == row["fact_id"]:
                continue
            yield TrainingEdit({**row, "label": wanted}, {**outer, "label": wanted}, local)


class MendTraining:
    """Trains a transform for one layer of one model.

    Args:
        model: the unedited model, in eval mode; not changed.
        layer: that is edited.
        encode: makes the model's arguments of rows, labels included.
        settings: of the editor.
    """

    def __init__(
        self, model: nn.Module, layer: str, encode: Encode, settings: MendHyperparameters
    ) -> None:
        self.model = model
        self.encode = encode
        self.settings = settings
        self.module = find_layer(model, layer)
        self.name = f"{layer_name(layer)}.weight"
        dims = layer_dims(self.module, layer)
        generator = torch.Generator().manual_seed(settings.training_seed)
        self.transform = GradientTransform(
            dims.d_in, dims.d_out, settings.rank, settings.rate, generator
        ).to(self.module.weight.device)

    def fit(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Train on most rows, keep what is best on the others; return what to tell of it."""
        settings = self.settings
        train, held_out = split_by_fact(rows, settings.held_out)
        self.transform.normalise_by(self._pairs(train))
        check = list(take(training_edits(held_out, settings.training_seed + 1), settings.checks))
        stream = training_edits(train, settings.training_seed)
        optimizer = torch.optim.Adam(
            [
                {"params": [self.transform.rate], "lr": settings.rate_learning_rate},
                {
                    "params": [p for n, p in self.transform.named_parameters() if n != "rate"],
                    "lr": settings.learning_rate,
                },
            ]
        )
        best = untrained = self.evaluate(check)
        state = self._state()
        since_best = step = 0
        for step in range(1, settings.training_steps + 1):
            optimizer.zero_grad()
            for item in take(stream, settings.accumulate):
                losses = self.losses(item)
                (self.total(losses) / settings.accumulate).backward()
            nn.utils.clip_grad_norm_(self.transform.parameters(), 100.0)
            optimizer.step()
            if step % settings.check_every and step < settings.training_steps:
                continue
            found = self.evaluate(check)
            logger.info("step %d: held-out loss %.4f", step, found["total"])
            since_best += settings.check_every
            if found["total"] < best["total"]:
                best, state, since_best = found, self._state(), 0
            if since_best >= settings.patience:
                break
        self.transform.load_state_dict(state)
        return {"steps": step, "examples": len(train), "untrained": untrained, "trained": best}

    def losses(self, item: TrainingEdit) -> dict[str, Tensor]:
        """Return the edit's NLL after the update, and the KL on the other fact."""
        edit, outer, local = map(self._inputs, (item.edit, item.outer, item.local))
        inputs, gradients, _ = token_gradients(self.model, self.module, edit)
        with torch.no_grad():
            before = self.model(**local).logits
        with torch.enable_grad():
            update = self.transform(inputs, gradients)
            weight = self.module.weight.detach()
            edited = {self.name: weight - (update.T if is_transposed(self.module) else update)}
            after = torch.func.functional_call(self.model, edited, args=(), kwargs=outer)
            kept = torch.func.functional_call(self.model, edited, args=(), kwargs=local).logits
            return {"edit": after.loss, "local": divergence(before, kept, local, self.model)}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum that is trained on."""
        return self.settings.edit_weight * losses["edit"] + losses["local"]

    @torch.no_grad()
    def evaluate(self, items: Sequence[TrainingEdit]) -> dict[str, float]:
        """Return mean losses over edits."""
        found = [self.losses(item) for item in items]
        means = {
            name: math.fsum(losses[name].item() for losses in found) / len(found)
            for name in ("edit", "local")
        }
        return {**means, "total": self.settings.edit_weight * means["edit"] + means["local"]}

    def _pairs(self, rows: Sequence[Row]) -> Tensor:
        """Return (u, delta) of many tokens of training edits."""
        settings = self.settings
        items = take(training_edits(rows, settings.training_seed + 2), settings.normalise_over)
        found = [
            token_gradients(self.model, self.module, self._inputs(item.edit)) for item in items
        ]
        return torch.cat([torch.cat([u, delta], 1) for u, delta, _ in found])

    def _inputs(self, row: Row) -> dict[str, Tensor]:
        device = self.module.weight.device
        return {name: tensor.to(device) for name, tensor in self.encode([row]).items()}

    def _state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.transform.state_dict().items()}


def divergence(
    before: Tensor, after: Tensor, inputs: Mapping[str, Tensor], model: nn.Module
) -> Tensor:
    """Return KL(before || after), averaged over the positions that predict something.

    Args:
        before: logits (B, L, V) or (B, C).
        after: the same of the edited model.
        inputs: of the model.
        model: says whether it is causal; then every real token's prediction counts.
    """
    kl = nn.functional.kl_div(
        after.float().log_softmax(-1),
        before.float().log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    if kl.dim() == 1:
        return kl.mean()
    counted = inputs["attention_mask"] if is_causal(model) else inputs["labels"] >= 0
    return kl[counted.bool()].mean()


def make_assets(request: AssetRequest) -> dict[str, Any]:
    """Train a transform for the request's model and layer, and write it into its folder."""
    training = MendTraining(
        request.model, request.layer, request.task.encode, request.hyperparameters
    )
    told = training.fit(request.rows)
    save_transform(training.transform, request.folder, request.layer)
    return told


def take(items: Iterator[TrainingEdit], count: int) -> Iterator[TrainingEdit]:
    """Yield the next `count` items."""
    for _ in range(count):
        yield next(items)


def split_by_fact(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Return the rows of most facts, and those of the last `share` of facts."""
    facts = list(dict.fromkeys(row["fact_id"] for row in rows))
    if len(facts) < FEWEST:
        raise DataError(f"MEND needs {FEWEST} facts to train on, there are {len(facts)}.")
    held_out = set(facts[-max(2, round(share * len(facts))) :])
    return (
        [row for row in rows if row["fact_id"] not in held_out],
        [row for row in rows if row["fact_id"] in held_out],
    )


def save_transform(transform: GradientTransform, folder: Path, layer: str) -> None:
    """Write a transform's tensors."""
    content = safetensors.torch.save(
        {name: tensor.contiguous().cpu() for name, tensor in transform.state_dict().items()},
        metadata={"layer": layer_name(layer)},
    )
    with atomic_path(folder / TRANSFORM) as temporary:
        temporary.write_bytes(content)


def load_transform(transform: GradientTransform, folder: Path, layer: str) -> None:
    """Fill in a transform from its file.

    Raises:
        EditorError: the file is missing, damaged, or of another layer or shape.
    """
    path = folder / TRANSFORM
    try:
        with safe_open(path, "pt") as file:
            trained_for = (file.metadata() or {}).get("layer")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if trained_for == layer_name(layer):
            transform.load_state_dict(state)
            return
    except (OSError, SafetensorError, RuntimeError) as error:
        raise EditorError(f"{path}: is no transform of layer '{layer}'; train it again.") from error
    raise EditorError(f"{path}: was trained for layer '{trained_for}', not '{layer}'.")
