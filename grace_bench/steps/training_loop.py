"""The training loop of base models: AdamW, linear warm-up, cosine decay; resumable bit for bit."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_bench.errors import ModelError, unknown_name
from grace_bench.jobs.checkpoints import Checkpoint, Checkpoints
from grace_bench.jobs.resumable import CheckpointPolicy, ResumableLoop
from grace_bench.models.device import autocast
from grace_bench.tasks.base import IGNORED, Task, to_device

if TYPE_CHECKING:
    from grace_bench.suite.schema import ComputeConfig, TrainingConfig

logger = logging.getLogger(__name__)

LOG_EVERY = 100
LARGEST_NORM = 1.0  # of the gradient of a step

STATE_VERSION = 2
"""Version of the state that `Training` writes into checkpoints."""


def train_model(
    model: nn.Module,
    task: Task,
    examples: list[dict[str, Any]],
    training: TrainingConfig,
    compute: ComputeConfig,
    checkpoints: Checkpoints | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train a model in place; return its record and one log row per step.

    Args:
        model: on its device.
        task: encodes the examples.
        examples: at least one.
        training: settings.
        compute: precision; with float16, gradients are scaled.
        checkpoints: written every `training.checkpoint_minutes` and on a request to stop; training
            resumes from the newest. None: it cannot be resumed.

    Raises:
        ModelError: `training.freeze` matches no parameter or all of them, or training diverged.
        Interrupted: it was asked to stop; a checkpoint of the current step was written.
    """
    run = Training(model, task, examples, training, compute)
    policy = CheckpointPolicy(training.checkpoint_minutes)
    loop = ResumableLoop(run, checkpoints, policy, training.steps, "training")
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(training.seed or 0)
        loop.restore()
        try:
            with loop.guard() as after_step:
                run.go(after_step)
        except ModelError:
            if checkpoints is not None:
                checkpoints.remove()  # resumed from there, it would diverge again
            raise
    record = {
        **training.model_dump(mode="json"),
        "loss": curve(run.log),
        "epochs": round(run.examples_seen / len(examples), 3),
        "seconds": round(run.seconds, 1),
        "parameters_trained": sum(p.numel() for p in run.trained),
        "resumed_from": loop.restarts,
    }
    return record, run.log


class Training:
    """A training in progress (`Resumable`).

    The examples of a step are drawn as one batch of `batch_size * accumulate` and computed in parts
    of `batch_size`. Each part's mean loss is weighted by its share of the step's label tokens (of
    its rows where rows have classes), so the gradient is that of one large batch.

    Args:
        model: on its device; its parameters outside `settings.freeze` are trained in place.
        task: encodes the examples.
        examples: at least one.
        settings: of the training.
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
        # Small gradients underflow in float16 unless scaled; otherwise a no-op.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=compute.precision == "float16")
        size = settings.batch_size * settings.accumulate
        self.batches = endless_batches(examples, size, settings.seed or 0)
        self.log: list[dict[str, Any]] = []
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    @property
    def done(self) -> int:
        """Number of steps made."""
        return len(self.log)

    @property
    def finished(self) -> bool:
        """Whether all steps have been made."""
        return self.done >= self.settings.steps

    @property
    def examples_seen(self) -> int:
        """Number of examples the steps have seen, repetitions included."""
        return self.log[-1]["examples"] if self.log else 0

    @property
    def seconds(self) -> float:
        """Training time, interruptions excluded."""
        return self._seconds_before + time.perf_counter() - self._started

    def go(self, after_step: Callable[[], None]) -> None:
        """Make all remaining steps."""
        self.model.train()
        while not self.finished:
            self.make_step()
            after_step()
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
        rate = self.settings.learning_rate * rate_share(self.done, self.settings)
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
                "step": self.done + 1,
                "loss": total,
                "learning_rate": rate,
                "examples": self.examples_seen + len(rows),
                "seconds": self.seconds,
            }
        )
        if not math.isfinite(total):
            raise self._diverged(f"loss {total}")
        if self._is_reported(self.done):
            self._report()

    def checkpoint(self) -> Checkpoint:
        """Return the state after the last step."""
        state = {"scaler": self.scaler.state_dict(), "seconds": self.seconds}
        return Checkpoint(self.done, self._tensors(), state, {"log": self.log})

    def restore(self, found: Checkpoint) -> None:
        """Return to the state of a checkpoint, torch's global generators included."""
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
        self.log = list(found.records["log"])
        self._seconds_before = state["seconds"]
        self._started = time.perf_counter()
        # The order of examples is drawn again from its seed, up to this step.
        next(islice(self.batches, self.done - 1, None))

    def _own_tensors(self) -> dict[str, Tensor]:
        """Return what training changes in the model: trained parameters and saved buffers."""
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
            f"training diverged at step {self.done} ({what}); lower training.learning_rate."
        )

    def _is_reported(self, step: int) -> bool:
        return step % LOG_EVERY == 0 or step == self.settings.steps

    def _report(self) -> None:
        seconds, steps = self.seconds, self.settings.steps
        logger.info(
            "step %d/%d, loss %.4f, %.0f s, %.0f s left",
            *(self.done, steps, mean_loss(self.log, self.done), seconds),
            seconds / self.done * (steps - self.done),
        )


def mean_loss(log: Sequence[dict[str, Any]], step: int) -> float:
    """Return the mean loss of the last steps up to `step`."""
    recent = [row["loss"] for row in log[max(0, step - LOG_EVERY) : step]]
    return sum(recent) / len(recent)


def curve(log: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the mean loss up to every hundredth step and the last one."""
    steps = [step for step in range(1, len(log) + 1) if step % LOG_EVERY == 0 or step == len(log)]
    return [{"step": step, "loss": round(mean_loss(log, step), 6)} for step in steps]


def choose_parameters(model: nn.Module, freeze: Sequence[str]) -> list[nn.Parameter]:
    """Make all parameters trainable except those whose names begin with one of `freeze`."""
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
    """Return the number of label tokens, or rows with a class, that `training_loss` averages."""
    labels = batch["labels"]
    if is_causal(model, labels):
        labels = labels[:, 1:]
    return int((labels != IGNORED).sum())


def is_causal(model: nn.Module, labels: Tensor) -> bool:
    """Return whether labels lie at the positions of their inputs and are predicted one before."""
    return labels.dim() == 2 and not model.config.is_encoder_decoder


def rate_share(index: int, training: TrainingConfig) -> float:
    """Return the share of the peak learning rate at step `index`, from 0."""
    if index < training.warmup_steps:
        return (index + 1) / training.warmup_steps
    rest = max(1, training.steps - training.warmup_steps)
    done = min(1.0, (index - training.warmup_steps) / rest)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def endless_batches(
    examples: list[dict[str, Any]], size: int, seed: int
) -> Iterator[list[dict[str, Any]]]:
    """Yield batches without end, each epoch in a new order drawn from its own generator.

    Within windows of 16 batches, examples are sorted by length to limit padding.
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
