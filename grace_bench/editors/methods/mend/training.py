"""Train MEND's transform before any run (Mitchell et al. 2022, Sect. 3.2, Eq. 4).

After the update the model should answer the edit, also in another phrasing if there is one, and
answer other examples as before: loss = c_edit * NLL(edit) + KL(model before || model after) on
other examples. A step's edits are one batch in which each row sees only its own edit's update.
Interrupted training resumes from its last checkpoint and ends with the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from grace_bench import NUMERICS_VERSION
from grace_bench.codebook.keys import IGNORED
from grace_bench.editors.base import AssetRequest
from grace_bench.editors.methods.mend.editor import (
    GradientTransform,
    TokenGradients,
    save_transform,
    token_gradients,
)
from grace_bench.editors.methods.mend.examples import (
    Row,
    TrainingEdit,
    split_by_fact,
    take,
    training_edits,
)
from grace_bench.editors.methods.mend.hyperparameters import MendHyperparameters
from grace_bench.editors.training import is_causal, row_losses
from grace_bench.jobs.checkpoints import Checkpoint, Checkpoints
from grace_bench.jobs.resumable import CheckpointPolicy, ResumableLoop
from grace_bench.models.architecture import find_layer, layer_dims, layer_name
from grace_bench.replay.recording import only_trainable
from grace_bench.store import provenance

logger = logging.getLogger(__name__)

LARGEST_NORM = 100.0
"""Of a step's gradient (released)."""

CHECKPOINTS = ".training"

STATE_VERSION = 2
"""Version of the state that `MendTraining` writes into checkpoints."""

Encode = Callable[[Sequence[Row]], dict[str, Tensor]]


class MendTraining:
    """Trains a transform for one layer of one model.

    Args:
        model: the unedited model, in eval mode; not changed.
        layer: the layer to edit.
        encode: turns rows into the model's arguments, labels included.
        settings: of the editor.
    """

    def __init__(
        self, model: nn.Module, layer: str, encode: Encode, settings: MendHyperparameters
    ) -> None:
        self.model = model
        self.encode = encode
        self.settings = settings
        self.causal = is_causal(model)
        self.module = find_layer(model, layer)
        dims = layer_dims(self.module, layer)
        generator = torch.Generator().manual_seed(settings.training_seed)
        self.transform = GradientTransform(
            dims.d_in, dims.d_out, settings.rank, settings.edit_lr, generator
        ).to(self.module.weight.device)

        self.optimizer = torch.optim.Adam(
            [
                {"params": [self.transform.rate], "lr": settings.lr_lr},
                {
                    "params": [p for n, p in self.transform.named_parameters() if n != "rate"],
                    "lr": settings.learning_rate,
                },
            ]
        )
        self.done = self.best_step = 0
        self.untrained: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.best_state: dict[str, Tensor] = {}

    def fit(
        self,
        rows: Sequence[Row],
        checkpoints: Checkpoints | None = None,
        policy: CheckpointPolicy = CheckpointPolicy(),
    ) -> dict[str, Any]:
        """Train on most rows, keep the state that is best on the others, and return a summary.

        Args:
            rows: of the role `train`.
            checkpoints: to resume from and to write; None: not resumable.
            policy: when to write checkpoints.

        Raises:
            DataError: there are too few rows.
            Interrupted: it was asked to stop, and wrote a checkpoint.
        """
        settings = self.settings
        train, held_out = split_by_fact(rows, settings.held_out, settings.training_seed)
        check = take(training_edits(held_out, settings.training_seed + 1), settings.checks)
        loop = ResumableLoop(self, checkpoints, policy, settings.training_steps, "MEND's training")
        with only_trainable(self.model, []):
            loop.restore()
            if self.done == 0:
                self.transform.normalise_by(self._pairs(train))
                self.best = self.untrained = self.evaluate(check)
                self.best_state = self._state()
            with loop.guard() as after_step:
                self._run(train, check, after_step)
            self.transform.load_state_dict(self.best_state)
            return {
                "steps": self.done,
                "best_step": self.best_step,
                "rate": self.transform.rate.item(),
                "examples": len(train),
                "unedited": self.evaluate(check, edited=False),
                "untrained": self.untrained,
                "trained": self.best,
            }

    @property
    def finished(self) -> bool:
        """Whether all steps were made, or the held-out loss no longer falls."""
        checked = self.done - self.done % self.settings.check_every
        patience = checked - self.best_step >= self.settings.patience
        return patience or self.done >= self.settings.training_steps

    def _run(
        self,
        train: Sequence[Row],
        check: Sequence[TrainingEdit],
        after_step: Callable[[], None],
    ) -> None:
        settings = self.settings
        stream = training_edits(train, settings.training_seed)
        take(stream, self.done * settings.accumulate)  # drawn again, up to this step
        while not self.finished:
            self.make_step(take(stream, settings.accumulate))
            if self.done % settings.check_every == 0 or self.done == settings.training_steps:
                self._check(check)
            after_step()

    def make_step(self, items: Sequence[TrainingEdit]) -> None:
        """Make one step of the optimiser on a batch of edits."""
        self.optimizer.zero_grad()
        self.total(self.losses(items)).mean().backward()
        nn.utils.clip_grad_norm_(self.transform.parameters(), LARGEST_NORM)
        self.optimizer.step()
        self.done += 1

    def _check(self, check: Sequence[TrainingEdit]) -> None:
        found = self.evaluate(check)
        logger.info("step %d: held-out loss %.4f", self.done, found["total"])
        if found["total"] < self.best["total"]:
            self.best, self.best_state, self.best_step = found, self._state(), self.done

    def checkpoint(self) -> Checkpoint:
        """Return everything that the steps to come depend on."""
        tensors = {f"transform.{name}": tensor for name, tensor in self._state().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_state.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": part for name, part in moments.items()}
        progress = {"best_step": self.best_step, "best": self.best, "untrained": self.untrained}
        return Checkpoint(self.done, tensors, progress)

    def restore(self, found: Checkpoint) -> None:
        """Return to the state of a checkpoint."""
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in found.tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.transform.load_state_dict(parts["transform"])
        moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in parts["optimizer"].items():
            index, key = name.split(".")
            moments[int(index)][key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": dict(moments), "param_groups": groups})
        self.done, self.best_state = found.number, parts["best"]
        self.best_step, self.best = found.state["best_step"], found.state["best"]
        self.untrained = found.state["untrained"]

    def losses(self, items: Sequence[TrainingEdit], edited: bool = True) -> dict[str, Tensor]:
        """Return each edit's NLL after its update (B,), and the KL on its other fact (B,).

        Args:
            items: B edits.
            edited: False: without the update.
        """
        outer = self._inputs([item.outer for item in items])
        local = self._inputs([item.local for item in items])
        with torch.no_grad():
            before = self.model(**local).logits
        u, delta = self._updates(items)
        with updated(self.module, u, delta if edited else torch.zeros_like(delta)):
            answered = row_losses(self.model(**outer).logits, outer["labels"], self.causal)
            after = self.model(**local).logits
        return {"edit": answered, "local": divergence(before, after, local, self.causal)}

    def _updates(self, items: Sequence[TrainingEdit]) -> tuple[Tensor, Tensor]:
        """Return the factors of each edit's update: u (B, N, d_in) and delta (B, N, d_out)."""
        found = self._gradients(items)
        u, delta = self.transform(found.inputs, found.gradients)
        counts = torch.bincount(found.rows, minlength=len(items)).tolist()
        return (
            pad_sequence(u.split(counts), batch_first=True),
            pad_sequence(delta.split(counts), batch_first=True),
        )

    def _gradients(self, items: Sequence[TrainingEdit]) -> TokenGradients:
        inputs = self._inputs([item.edit for item in items])
        labels = inputs["labels"]
        return token_gradients(
            self.model,
            self.module,
            inputs,
            lambda output: row_losses(output.logits, labels, self.causal).sum(),
        )

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return each edit's training loss."""
        return self.settings.c_edit * losses["edit"] + losses["local"]

    @torch.no_grad()
    def evaluate(self, items: Sequence[TrainingEdit], edited: bool = True) -> dict[str, float]:
        """Return mean losses over edits."""
        size = self.settings.accumulate
        batches = [
            self.losses(items[start : start + size], edited) for start in range(0, len(items), size)
        ]
        means = {
            name: math.fsum(torch.cat([losses[name] for losses in batches]).tolist()) / len(items)
            for name in ("edit", "local")
        }
        return {**means, "total": self.settings.c_edit * means["edit"] + means["local"]}

    def _pairs(self, rows: Sequence[Row]) -> Tensor:
        """Return the pairs (u, delta) of many training edits' tokens."""
        settings, size = self.settings, self.settings.accumulate
        items = take(training_edits(rows, settings.training_seed + 2), settings.normalise_over)
        found = [
            self._gradients(items[start : start + size]) for start in range(0, len(items), size)
        ]
        return torch.cat([torch.cat([each.inputs, each.gradients], 1) for each in found])

    def _inputs(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        device = self.module.weight.device
        return {name: tensor.to(device) for name, tensor in self.encode(rows).items()}

    def _state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.transform.state_dict().items()}


@contextlib.contextmanager
def updated(module: nn.Module, u: Tensor, delta: Tensor) -> Iterator[None]:
    """Subtract delta[b]^T u[b] from the layer's weight for row b of a batch, within the block.

    Args:
        module: the layer.
        u: (B, N, d_in).
        delta: (B, N, d_out).
    """

    def take_off(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].float()
        x = x[:, None] if output.dim() == 2 else x  # (B, L, d_in)
        less = (x @ u.mT) @ delta  # (B, L, d_out), without forming (B, d_out, d_in)
        return output - less.reshape(output.shape).to(output.dtype)

    handle = module.register_forward_hook(take_off)
    try:
        yield
    finally:
        handle.remove()


def divergence(before: Tensor, after: Tensor, inputs: Mapping[str, Tensor], causal: bool) -> Tensor:
    """Return each row's mean KL(before || after), (B,), over the tokens that predict something.

    Args:
        before: logits (B, L, V) or (B, C).
        after: the same of the edited model.
        inputs: of the model.
        causal: count every real token's prediction, not only those of labels.
    """
    if before.dim() == 2:
        return _kl(before, after)
    counted = inputs["attention_mask"].bool() if causal else inputs["labels"] != IGNORED  # (B, L)
    weights = (1 / counted.sum(1)).repeat_interleave(counted.sum(1))
    kl = weights * _kl(before[counted], after[counted])
    return kl.new_zeros(len(before)).index_add(0, counted.nonzero()[:, 0], kl)


def _kl(before: Tensor, after: Tensor) -> Tensor:
    before, after = before.float().log_softmax(-1), after.float().log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1)


def make_assets(request: AssetRequest) -> dict[str, Any]:
    """Train a transform for the request's model and layer, and write it to its folder."""
    training = MendTraining(
        request.model, request.layer, request.task.encode, request.hyperparameters
    )
    checkpoints = Checkpoints(request.folder / CHECKPOINTS, fingerprint(request))
    summary = training.fit(request.rows, checkpoints, request.policy)
    save_transform(training.transform, request.folder, request.layer)
    checkpoints.remove()
    return summary


def fingerprint(request: AssetRequest) -> str:
    """Return a hash of all that the training depends on."""
    device = next(request.model.parameters()).device
    parts = {
        "state": STATE_VERSION,
        "numerics": NUMERICS_VERSION,
        "packages": provenance.package_versions(("torch", "transformers")),
        "settings": request.hyperparameters.model_dump(mode="json"),
        "layer": layer_name(request.layer),
        "model": request.model_hash,
        "max_length": request.task.max_length,
        "rows": list(request.rows),
        "device": [device.type, torch.get_num_threads()],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
