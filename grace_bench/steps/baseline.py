"""The baseline: what the unedited model predicts, made once per model x data set."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grace_bench.datasets.base import load_evaluated, load_role, read_manifest
from grace_bench.errors import DataError, Diverged, ModelError
from grace_bench.models.device import autocast, set_up
from grace_bench.models.loading import load_model
from grace_bench.run.evaluation import predict_all, prediction_rows, probe_rows
from grace_bench.store.files import read_parquet, write_parquet
from grace_bench.store.json_records import read_record, write_record
from grace_bench.store.records import BASELINE, BaselineRecord, TruncationCounts
from grace_bench.store.schemas import predictions_schema
from grace_bench.suite.schema import RunSpec
from grace_bench.tasks import create_task
from grace_bench.tasks.base import Task

logger = logging.getLogger(__name__)


def load_baseline(folder: Path, data_hash: str, model_hash: str) -> list[Mapping[str, Any]]:
    """Return the unedited model's predictions.

    Raises:
        DataError: they were made with other data or another model.
    """
    record = read_record(folder / BASELINE, BaselineRecord)
    if (record.data_hash, record.model_hash) != (data_hash, model_hash):
        raise DataError(
            f"{folder}: the baseline was made with other data or another model; make it again."
        )
    return read_parquet(folder / "predictions.parquet", predictions_schema()).to_pylist()


def count_truncated(
    task: Task, role: str, examples: Sequence[Mapping[str, Any]]
) -> TruncationCounts:
    """Count the examples whose text or label is truncated, and unsayable labels.

    A label is truncated if it is longer than `max_length` allows or than what is generated. A label
    that its tokens do not reproduce ("unsayable") is compared in the form that they do produce.
    """
    cuts = [task.truncation(example, asked=role != "train") for example in examples]
    texts, labels = (sum(c.text > 0 for c in cuts), sum(c.label > 0 for c in cuts))
    unsayable = sum(not task.is_sayable(example) for example in examples)
    if texts or labels:
        logger.warning(
            "%s: of %d rows, %d texts and %d labels are longer than max_length %d allows and are "
            "truncated; raise the model's max_length to use them completely.",
            *(role, len(cuts), texts, labels, task.max_length),
        )
    if unsayable:
        logger.warning(
            "%s: of %d rows, %d labels are not reproduced by their tokens and are compared in the "
            "form that is; check that the tokenizer is the right one.",
            *(role, len(cuts), unsayable),
        )
    return TruncationCounts(rows=len(cuts), texts=texts, labels=labels, unsayable=unsayable)


def run_baseline(
    spec: RunSpec,
    data_folder: Path,
    model_folder: Path,
    output: Path,
    made_from: str | None = None,
) -> BaselineRecord:
    """Predict every role with the unedited model.

    `output` receives predictions.parquet and, last, baseline.json with the averages and the numbers
    of truncated texts and labels of each role.
    """
    device = set_up(spec.compute)
    loaded = load_model(model_folder, spec.dataset.task, device)
    task = create_task(
        *(spec.dataset, spec.model, loaded.tokenizer, loaded.model.config),
        load_evaluated(data_folder),
    )
    rows: list[dict[str, Any]] = []
    averages: dict[str, dict[str, float | None]] = {}
    truncated: dict[str, TruncationCounts] = {}
    if spec.model.training is not None:
        truncated["train"] = count_truncated(task, "train", load_role(data_folder, "train"))
    for role in ("upstream", "edits", "holdout", "accurate"):
        examples = list(load_role(data_folder, role))
        truncated[role] = count_truncated(task, role, examples)
        try:
            with autocast(spec.compute, device):
                predictions = predict_all(loaded.model, task, examples, spec.probes.batch_size)
        except Diverged as error:
            raise ModelError(
                f"model '{spec.model.name}', unedited, with compute.precision "
                f"{spec.compute.precision}: {error}; use float32 or bfloat16, or another model."
            ) from error
        found = prediction_rows(examples, predictions, role, step=0, n_edits=0)
        rows += found
        averages[role] = {r["measure"]: r["value"] for r in probe_rows(found, role, 0, 0)}
        averages[role]["n"] = len(examples)
        if role == "edits":
            averages[role]["errors"] = sum(task.is_error(p) for p in predictions)
        shown = (f"{k} {v:.4g}" for k, v in averages[role].items() if v is not None)
        logger.info("%s: %s", role, ", ".join(shown))
    write_parquet(output / "predictions.parquet", rows, predictions_schema())
    record = BaselineRecord(
        made_from=made_from,
        model_hash=loaded.sha256,
        data_hash=read_manifest(data_folder).data_hash,
        averages=averages,
        truncated=truncated,
        max_length=task.max_length,
        measure=task.main_measure,
    )
    write_record(output / BASELINE, record)
    return record
