"""Prepares a base model: build or load it, train it on the `train` role, save it.

The result is an ordinary Hugging Face model folder plus `training.parquet`, the log of every step,
and `training.json`, which is written last: a folder that has it is complete. During training,
checkpoints lie in the subfolder `.training`; the same call resumes from them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grace_bench import NUMERICS_VERSION
from grace_bench.datasets.base import load_evaluated, load_role, read_manifest
from grace_bench.errors import DataError, Diverged, ModelError
from grace_bench.jobs.checkpoints import Checkpoints
from grace_bench.models.architecture import find_layer, hash_of_weights
from grace_bench.models.device import set_up
from grace_bench.models.loading import WEIGHTS, load_pretrained
from grace_bench.models.scratch import build_model, train_tokenizer
from grace_bench.run.evaluation import average, predict_all
from grace_bench.steps.training_loop import STATE_VERSION, train_model
from grace_bench.store import provenance
from grace_bench.store.files import atomic_path, sha256_of, write_parquet
from grace_bench.store.json_records import write_record
from grace_bench.store.records import TRAINING, TrainingRecord, Upstream
from grace_bench.store.schemas import TRAINING_LOG
from grace_bench.suite.plan import base_model_settings
from grace_bench.suite.schema import ComputeConfig, DatasetConfig, ModelConfig, ScratchSource
from grace_bench.tasks import create_task

logger = logging.getLogger(__name__)

MEASURED_EXAMPLES = 200
ONE_FILE = 2**60
"""Size in bytes up to which weights are saved as one file."""
CHECKPOINTS = ".training"
TRAINING_LOG_FILE = "training.parquet"


def prepare_model(
    model_config: ModelConfig,
    dataset_config: DatasetConfig,
    data_folder: Path,
    output: Path,
    compute: ComputeConfig,
    made_from: str | None = None,
) -> TrainingRecord:
    """Prepare the base model of a model x data set pair; return its record.

    Raises:
        ModelError: the model lacks the layer, or training diverged; nothing is left behind.
        Interrupted: it was asked to stop during training; called again, training resumes.
    """
    manifest = read_manifest(data_folder)
    device = set_up(compute)
    train = list(load_role(data_folder, "train"))
    if not train:
        raise DataError(f"{data_folder}: no rows to train on; prepare the data set again.")
    model, tokenizer = build_or_load(model_config, dataset_config.task, train, manifest.labels)
    find_layer(model, model_config.layer)
    model.to(device)
    task = create_task(
        dataset_config, model_config, tokenizer, model.config, load_evaluated(data_folder)
    )
    data_hash, settings = manifest.data_hash, model_config.training
    trained: dict[str, Any] | None = None
    log: list[dict[str, Any]] = []
    if settings is not None:
        checkpoints = None
        if settings.checkpoint_minutes > 0:
            of = training_fingerprint(model, model_config, dataset_config, data_hash, compute)
            checkpoints = Checkpoints(output / CHECKPOINTS, of)
        trained, log = train_model(model, task, train, settings, compute, checkpoints)
    model.eval()
    upstream = list(load_role(data_folder, "upstream"))[:MEASURED_EXAMPLES]
    try:
        predictions = predict_all(model, task, upstream, batch_size=64)
    except Diverged as error:
        raise ModelError(f"model '{model_config.name}': {error}; use another model.") from error
    measure = task.main_measure
    score = average(predictions, measure)
    logger.info("upstream %s: %.3f", measure, score)
    save_model(model, tokenizer, log, output)
    record = TrainingRecord(
        model=model_config.name,
        dataset=dataset_config.name,
        made_from=made_from,
        compute={"precision": compute.precision, "threads": compute.threads},
        config=model_config.model_dump(mode="json"),
        training=trained,
        upstream=Upstream(n=len(upstream), measure=measure, value=score),
        sha256=sha256_of(output / WEIGHTS),
        data_hash=data_hash,
        parameters=sum(p.numel() for p in model.parameters()),
        provenance=provenance.describe(),
    )
    write_record(output / TRAINING, record)
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return record


def build_or_load(
    config: ModelConfig, task: str, train: Sequence[dict[str, Any]], labels: list[str] | None
) -> tuple[nn.Module, Any]:
    """Return a model, not yet trained here, and its tokenizer.

    Args:
        config: of the model.
        task: that it is for.
        train: rows from which the tokenizer of a new model is trained.
        labels: classes in their order; None: the task has none.
    """
    source, seed = config.source, (config.training and config.training.seed) or 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a new classification head is drawn from the global generator
        if not isinstance(source, ScratchSource):
            return load_pretrained(source, task, labels, config.training is not None)
        texts = (row[key] for row in train for key in ("text", "label") if row[key])
        tokenizer = train_tokenizer(source.architecture, texts, source.vocabulary_size)
        return build_model(source, task, tokenizer, labels, seed), tokenizer


def training_fingerprint(
    model: nn.Module,
    model_config: ModelConfig,
    dataset_config: DatasetConfig,
    data_hash: str,
    compute: ComputeConfig,
) -> str:
    """Return the hash of everything that training depends on.

    Resuming from a checkpoint with another hash would lead to other weights.
    """
    settings = base_model_settings(model_config.model_dump(mode="json", exclude={"name"}))
    parts = {
        "state": STATE_VERSION,
        "numerics": NUMERICS_VERSION,
        "packages": provenance.package_versions(("torch", "transformers")),
        "model": settings,
        "task": dataset_config.task,
        "data": data_hash,
        "weights": hash_of_weights(model),
        "compute": [compute.precision, compute.threads, model.device.type],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def save_model(model: nn.Module, tokenizer: Any, log: list[dict[str, Any]], output: Path) -> None:
    """Write the files of a model folder, all but its record, one by one."""
    temporary = output / f".{uuid.uuid4().hex[:8]}.tmp"
    try:
        with atomic_path(output / WEIGHTS) as weights:
            model.save_pretrained(temporary, max_shard_size=ONE_FILE)
            tokenizer.save_pretrained(temporary)
            (temporary / WEIGHTS).replace(weights)
        for file in sorted(temporary.iterdir()):
            file.replace(output / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_parquet(output / TRAINING_LOG_FILE, log, TRAINING_LOG)
