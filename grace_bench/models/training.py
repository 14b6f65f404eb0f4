"""Preparing a base model: build or load it, train it on the `train` role, save it.

The folder written is an ordinary Hugging Face model folder plus `training.json`, which is
written last: a folder with one is whole.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
import uuid
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_bench import provenance
from grace_bench.config import (
    ComputeConfig,
    DatasetConfig,
    ModelConfig,
    ScratchSource,
    TrainingConfig,
)
from grace_bench.datasets.base import load_role
from grace_bench.errors import DataError, ModelError, unknown_name
from grace_bench.evaluation import average, predict_all
from grace_bench.models.compute import autocast, set_up
from grace_bench.models.layers import find_layer
from grace_bench.models.loading import TRAINING, WEIGHTS, load_pretrained
from grace_bench.models.scratch import build_model, train_tokenizer
from grace_bench.records import atomic_path, read_json, sha256_of, write_json
from grace_bench.tasks import TASKS
from grace_bench.tasks.base import IGNORED, Task, to_device

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

MEASURED_EXAMPLES = 200
LOG_EVERY = 100


def prepare_model(
    model_config: ModelConfig,
    dataset_config: DatasetConfig,
    data_folder: Path,
    output: Path,
    compute: ComputeConfig,
) -> dict[str, Any]:
    """Make the base model of a model x data set pair and return its training record.

    Raises:
        ModelError: the model has no such layer, or training diverged; nothing is left behind.
    """
    manifest = read_json(data_folder / "manifest.json")
    device = set_up(compute)
    train = list(load_role(data_folder, "train"))
    if not train:
        raise DataError(f"{data_folder}: no rows to train on; prepare the data set again.")
    labels = manifest.get("labels")
    seed = model_config.training.seed if model_config.training else 0
    source = model_config.source
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a new classification head is drawn from the global generator
        if isinstance(source, ScratchSource):
            texts = (row[key] for row in train for key in ("text", "label") if row[key])
            tokenizer = train_tokenizer(source.architecture, texts, source.vocabulary_size)
            model = build_model(source, dataset_config.task, tokenizer, labels, seed)
        else:
            model, tokenizer = load_pretrained(source, dataset_config.task, labels)
    find_layer(model, model_config.layer)
    model.to(device)
    task = TASKS.get(dataset_config.task)(tokenizer, model.config, model_config.max_length)
    record: dict[str, Any] = {
        "model": model_config.name,
        "dataset": dataset_config.name,
    }
    record["config"] = model_config.model_dump(mode="json")
    if model_config.training is not None:
        record["training"] = train_model(model, task, train, model_config.training, compute)
    model.eval()
    upstream = list(load_role(data_folder, "upstream"))[:MEASURED_EXAMPLES]
    predictions = predict_all(model, task, upstream, batch_size=64)
    record["upstream"] = {"n": len(upstream), "measure": task.main_measure}
    record["upstream"]["value"] = average(predictions, task.main_measure)
    logger.info("upstream %s: %.3f", task.main_measure, record["upstream"]["value"])
    return save_model(model, tokenizer, record, manifest["data_hash"], output)


def train_model(
    model: nn.Module,
    task: Task,
    examples: list[dict[str, Any]],
    training: TrainingConfig,
    compute: ComputeConfig,
) -> dict[str, Any]:
    """Train with AdamW, linear warm-up and cosine decay; batches of similar length.

    Raises:
        ModelError: `training.freeze` fits no parameter or all of them, or training diverged.
    """
    started = time.perf_counter()
    device = next(model.parameters()).device
    trained = choose_parameters(model, training.freeze)
    optimizer = torch.optim.AdamW(
        trained, lr=training.learning_rate, weight_decay=training.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _rate(i, training))
    batches = _batches(examples, training)
    losses: list[float] = []
    curve: list[dict[str, float]] = []
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(training.seed)
        for step in range(1, training.steps + 1):
            batch = to_device(task.encode(next(batches)), model)
            with autocast(compute, device):
                loss = training_loss(model, batch, training.label_smoothing)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ModelError(
                    f"training diverged at step {step} (loss {losses[-1]}); "
                    "lower training.learning_rate."
                )
            if step % LOG_EVERY == 0 or step == training.steps:
                recent = sum(losses[-LOG_EVERY:]) / len(losses[-LOG_EVERY:])
                curve.append({"step": step, "loss": round(recent, 6)})
                seconds = time.perf_counter() - started
                logger.info(
                    "step %d/%d, loss %.4f, %.0f s, %.0f s left",
                    *(step, training.steps, recent, seconds),
                    seconds / step * (training.steps - step),
                )
    if not all(parameter.isfinite().all() for parameter in trained):
        raise ModelError(
            f"training diverged at step {training.steps} (weights are not finite); "
            "lower training.learning_rate."
        )
    return {
        **training.model_dump(mode="json"),
        "loss": curve,
        "seconds": round(time.perf_counter() - started, 1),
        "parameters_trained": sum(p.numel() for p in trained),
    }


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
    if labels.dim() == 2 and not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]  # the token at i is predicted at i - 1
    return nn.functional.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
    )


def _rate(index: int, training: TrainingConfig) -> float:
    """Return the share of the peak learning rate at step `index`, from 0."""
    if index < training.warmup_steps:
        return (index + 1) / training.warmup_steps
    rest = max(1, training.steps - training.warmup_steps)
    done = min(1.0, (index - training.warmup_steps) / rest)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _batches(examples: list[dict[str, Any]], training: TrainingConfig):
    """Yield batches for ever, each epoch in a new order by a generator of its own.

    Within windows of 16 batches, examples are sorted by length so that little padding is computed.
    """
    generator = torch.Generator().manual_seed(training.seed)
    size = training.batch_size
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


def save_model(
    model: nn.Module,
    tokenizer: Any,
    record: dict[str, Any],
    data_hash: str,
    output: Path,
) -> dict[str, Any]:
    """Write the model folder file by file, `training.json` last."""
    temporary = output / f".{uuid.uuid4().hex[:8]}.tmp"
    try:
        with atomic_path(output / WEIGHTS) as weights:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            (temporary / WEIGHTS).replace(weights)
        for file in sorted(temporary.iterdir()):
            file.replace(output / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    record |= {
        "sha256": sha256_of(output / WEIGHTS),
        "data_hash": data_hash,
        "parameters": sum(p.numel() for p in model.parameters()),
        "provenance": provenance.describe(),
    }
    write_json(output / TRAINING, record)
    return record
