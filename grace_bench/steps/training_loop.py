"""The training loop of base models: AdamW, linear warm-up, cosine decay; resumable bit for bit."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_bench.errors import Interrupted, ModelError, ResultError, unknown_name
from grace_bench.jobs.checkpoints import stop_requests
from grace_bench.models.device import autocast
from grace_bench.tasks.base import IGNORED, Task, to_device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from grace_bench.jobs.checkpoints import Checkpoint, Checkpoints
    from grace_bench.suite.schema import ComputeConfig, TrainingConfig

logger = logging.getLogger(__name__)

LOG_EVERY = 100
LARGEST_NORM = 1.0  # of the gradient of a step

STATE_VERSION = 1
"""Of what `Training` writes into a checkpoint."""


def train_model(
    model: nn.Module,
    task: Task,
    examples: list[dict[str, Any]],
    training: TrainingConfig,
    compute: ComputeConfig,
    checkpoints: Checkpoints | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train a model in place; return what to tell of it, and one row of the log per step.

    Args:
        model: on its device.
        task: encodes the examples.
        examples: at least one.
        training: how.
        compute: precision; with float16, gradients are scaled.
        checkpoints: are written every `training.checkpoint_minutes` and when the process is asked
            to stop; the training goes on from the newest. None: it cannot be resumed.

    Raises:
        ModelError: `training.freeze` fits no parameter or all of them, or training diverged.
        Interrupted: it was asked to stop; there is a checkpoint of the step that was being made.
    """
    run = Training(model, task, examples, training, compute)
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(training.seed or 0)
        if checkpoints is not None and (found := checkpoints.latest()) is not None:
            with checkpoints.taking_over(found):
                run.load_state(found)
            logger.info("going on from the checkpoint of step %d", run.step)
        try:
            run.go(checkpoints)
        except ModelError:
            if checkpoints is not None:
                checkpoints.remove()  # what follows from it would diverge again
            raise
    record = {
        **training.model_dump(mode="json"),
        "loss": curve(run.log),
        "epochs": round(run.examples_seen / len(examples), 3),
        "seconds": round(run.seconds, 1),
        "parameters_trained": sum(p.numel() for p in run.trained),
        "resumed_from": run.resumed_from,
    }
    return record, run.log


class Training:
    """A training in progress.

    A step's examples are drawn as one batch of `batch_size * accumulate`; what is computed at once
    is a part of it. Each part's mean loss counts by its share of the step's label tokens (of its
    rows where rows have classes), so the gradient is that of one large batch.

    Args:
        model: on its device; its parameters outside `settings.freeze` are trained in place.
        task: encodes the examples.
        examples: at least one.
        settings: how to train.
        compute: precision of the forward passes.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        examples: list[dict[str, Any]],
        settings: TrainingConfig,
        compute: ComputeConfig,
    ) -> None:
        self.model = model
        self.task = task
        self.settings = settings
        self.compute = compute
        self.device = next(model.parameters()).device
        self.trained = choose_parameters(model, settings.freeze)
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        # float16 has no room for small gradients; scaled, they are kept. Otherwise a no-op.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=compute.precision == "float16")
        size = settings.batch_size * settings.accumulate
        self.batches = batches_for_ever(examples, size, settings.seed or 0)
        self.log: list[dict[str, Any]] = []
        self.resumed_from: list[int] = []
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    @property
    def step(self) -> int:
        """How many steps have been made."""
        return len(self.log)

    @property
    def examples_seen(self) -> int:
        """How many examples the steps have seen, repetitions counted."""
        return self.log[-1]["examples"] if self.log else 0

    @property
    def seconds(self) -> float:
        """Of training, interruptions left out."""
        return self._seconds_before + time.perf_counter() - self._started

    def go(self, checkpoints: Checkpoints | None) -> None:
        """Make all steps that are left."""
        settings = self.settings
        self.model.train()
        written = time.perf_counter()
        guard = contextlib.nullcontext(bool) if checkpoints is None else stop_requests()
        with guard as stop_requested:
            while self.step < settings.steps:
                self.make_step()
                if stop_requested():
                    self.write(checkpoints)
                    raise Interrupted(
                        f"training was asked to stop and did after step {self.step} of "
                        f"{settings.steps}; run the same command again and it goes on from there."
                    )
                since = time.perf_counter() - written
                if checkpoints is not None and since >= 60 * settings.checkpoint_minutes:
                    try:
                        self.write(checkpoints)
                    except ResultError as error:
                        logger.warning("no checkpoint at step %d, going on: %s", self.step, error)
                    written = time.perf_counter()
        if not all(parameter.isfinite().all() for parameter in self.trained):
            raise self._diverged("weights are not finite")

    def make_step(self) -> None:
        """Make one step of the optimiser and log it."""
        rows, size = next(self.batches), self.settings.batch_size
        parts = [
            to_device(self.task.encode(rows[start : start + size]), self.model)
            for start in range(0, len(rows), size)
        ]
        counts = [loss_terms(self.model, part) for part in parts]
        rate = self.settings.learning_rate * rate_share(self.step, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for part, count in zip(parts, counts, strict=True):
            with autocast(self.compute, self.device):
                loss = training_loss(self.model, part, self.settings.label_smoothing)
            if len(parts) > 1:
                loss = loss * (count / sum(counts))
            self.scaler.scale(loss).backward()
            total += loss.item()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.trained, LARGEST_NORM)
        self.scaler.step(self.optimizer)  # leaves out a step whose scaled gradients overflowed
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.log.append(
            {
                "step": self.step + 1,
                "loss": total,
                "learning_rate": rate,
                "examples": self.examples_seen + len(rows),
                "seconds": self.seconds,
            }
        )
        if not math.isfinite(total):
            raise self._diverged(f"loss {total}")
        if self._is_told(self.step):
            self._tell()

    def write(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint of this step."""
        state = {
            "scaler": self.scaler.state_dict(),
            "seconds": self.seconds,
            "resumed_from": self.resumed_from,
        }
        checkpoints.write(self.step, self._tensors(), state, {"log": self.log})

    def load_state(self, found: Checkpoint) -> None:
        """Go back to where a checkpoint was written; torch's global generators too."""
        tensors, state = found.tensors, found.state
        with torch.no_grad():
            for name, tensor in self._own_tensors().items():
                tensor.copy_(tensors[name])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, key = rest.split(".")
                moments.setdefault(int(index), {})[key] = tensor.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(tensors["random.cpu"].clone())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"].clone(), self.device)
        self.log = found.records["log"]
        self.resumed_from = [*state["resumed_from"], self.step]
        self._seconds_before = state["seconds"]
        self._started = time.perf_counter()
        # The order of examples is drawn again from its seed, up to where it was.
        next(islice(self.batches, self.step - 1, None))

    def _own_tensors(self) -> dict[str, Tensor]:
        """Return what training changes in the model: trained parameters, and buffers it keeps."""
        kept = self.model.state_dict().keys()
        parameters = self.model.named_parameters()
        return {
            **{f"model.{name}": p.data for name, p in parameters if p.requires_grad},
            **{f"model.{name}": b for name, b in self.model.named_buffers() if name in kept},
        }

    def _tensors(self) -> dict[str, Tensor]:
        tensors = self._own_tensors()
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return tensors

    def _diverged(self, what: str) -> ModelError:
        return ModelError(
            f"training diverged at step {self.step} ({what}); lower training.learning_rate."
        )

    def _is_told(self, step: int) -> bool:
        return step % LOG_EVERY == 0 or step == self.settings.steps

    def _tell(self) -> None:
        seconds, steps = self.seconds, self.settings.steps
        logger.info(
            "step %d/%d, loss %.4f, %.0f s, %.0f s left",
            *(self.step, steps, mean_loss(self.log, self.step), seconds),
            seconds / self.step * (steps - self.step),
        )


def mean_loss(log: Sequence[dict[str, Any]], step: int) -> float:
    """Return the mean loss of the last steps up to `step`."""
    recent = [row["loss"] for row in log[max(0, step - LOG_EVERY) : step]]
    return sum(recent) / len(recent)


def curve(log: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the mean loss before every hundredth step and the last."""
    told = [step for step in range(1, len(log) + 1) if step % LOG_EVERY == 0 or step == len(log)]
    return [{"step": step, "loss": round(mean_loss(log, step), 6)} for step in told]


def choose_parameters(model: nn.Module, freeze: Sequence[str]) -> list[nn.Parameter]:
    """Let all parameters be trained but those whose names begin with one of `freeze`."""
    parameters = dict(model.named_parameters())
    for prefix in freeze:
        if not any(name.startswith(prefix) for name in parameters):
            raise ModelError(unknown_name("parameter", prefix, parameters, "training.freeze"))
    for name, parameter in parameters.items():
        parameter.requires_grad_(not name.startswith(tuple(freeze)))
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    if not trained:
        raise ModelError("training.freeze: leaves no parameter to train; freeze fewer.")
    return trained


def training_loss(model: nn.Module, batch: dict[str, Tensor], smoothing: float) -> Tensor:
    """Return the model's own loss, or the same with smoothed labels."""
    output = model(**batch)
    if smoothing == 0.0:
        return output.loss
    logits, labels = output.logits, batch["labels"]
    if is_causal(model, labels):
        logits, labels = logits[:, :-1], labels[:, 1:]  # the token at i is predicted at i - 1
    return nn.functional.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
    )


def loss_terms(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Return over how many label tokens, or rows with a class, `training_loss` is a mean."""
    labels = batch["labels"]
    if is_causal(model, labels):
        labels = labels[:, 1:]
    return int((labels != IGNORED).sum())


def is_causal(model: nn.Module, labels: Tensor) -> bool:
    """Say whether labels stand at their inputs' positions and are predicted one before."""
    return labels.dim() == 2 and not model.config.is_encoder_decoder


def rate_share(index: int, training: TrainingConfig) -> float:
    """Return the share of the peak learning rate at step `index`, from 0."""
    if index < training.warmup_steps:
        return (index + 1) / training.warmup_steps
    rest = max(1, training.steps - training.warmup_steps)
    done = min(1.0, (index - training.warmup_steps) / rest)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def batches_for_ever(
    examples: list[dict[str, Any]], size: int, seed: int
) -> Iterator[list[dict[str, Any]]]:
    """Yield batches, each epoch in a new order by a generator of its own.

    Within windows of 16 batches, examples are sorted by length so that little padding is computed.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        batches = []
        for start in range(0, len(order), size * 16):
            window = sorted(
                order[start : start + size * 16],
                key=lambda i: (len(examples[i]["text"]) + len(examples[i]["label"]), i),
            )
            batches += [window[i : i + size] for i in range(0, len(window), size)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield [examples[i] for i in batches[index]]
