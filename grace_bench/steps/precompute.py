"""Assets: what some editors need before any run, such as statistics or a trained network.

An editor's SPEC names the function that makes its assets. Runs share them if they share the model,
the data set and the settings that the assets depend on. Assets are made from the role `train`
alone, so nothing of a stream or a probe leaks into them.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from grace_bench.datasets.base import load_evaluated, load_role, read_manifest
from grace_bench.editors.base import AssetRequest
from grace_bench.errors import DataError
from grace_bench.jobs.resumable import CheckpointPolicy
from grace_bench.models.device import set_up
from grace_bench.models.loading import load_model
from grace_bench.registry import EDITORS
from grace_bench.store import provenance
from grace_bench.store.files import sha256_of
from grace_bench.store.json_records import is_plain_name, read_record, write_record
from grace_bench.store.records import ASSETS, AssetsRecord
from grace_bench.suite.plan import asset_settings
from grace_bench.suite.schema import RunSpec
from grace_bench.tasks import create_task

logger = logging.getLogger(__name__)


def make_assets(
    spec: RunSpec,
    data_folder: Path,
    model_folder: Path,
    folder: Path,
    made_from: str | None = None,
    policy: CheckpointPolicy = CheckpointPolicy(),
) -> None:
    """Make the assets of a run's editor; write their record, assets.json, last.

    Raises:
        GraceBenchError: the data or the model are unsuitable.
    """
    started = time.perf_counter()
    editor = EDITORS.get(spec.editor.editor)
    device = set_up(spec.compute)
    rows = list(load_role(data_folder, "train"))
    if not rows:
        raise DataError(
            f"{data_folder}: has no examples to train on (role 'train'), which editor "
            f"'{spec.editor.editor}' needs; add some to the data set."
        )
    loaded = load_model(model_folder, spec.dataset.task, device)
    task = create_task(
        *(spec.dataset, spec.model, loaded.tokenizer, loaded.model.config),
        load_evaluated(data_folder),
    )
    hyperparameters = editor.hyperparameters_class()(**spec.editor.hyperparameters)
    folder.mkdir(parents=True, exist_ok=True)
    summary = editor.make_assets()(
        AssetRequest(
            model=loaded.model,
            model_hash=loaded.sha256,
            layer=spec.model.layer,
            task=task,
            hyperparameters=hyperparameters,
            rows=rows,
            folder=folder,
            policy=policy,
        )
    )
    files = sorted(folder.glob("*.safetensors"))
    record = AssetsRecord(
        made_from=made_from,
        editor=spec.editor.editor,
        settings=asset_settings(spec.editor),
        layer=spec.model.layer,
        data_hash=read_manifest(data_folder).data_hash,
        model_hash=loaded.sha256,
        summary=summary,
        files={path.name: sha256_of(path) for path in files},
        seconds=time.perf_counter() - started,
        provenance=provenance.describe(),
    )
    write_record(folder / ASSETS, record)
    logger.info("assets of %s: %s", spec.editor.editor, summary)


def check_assets(folder: Path, model_hash: str) -> AssetsRecord:
    """Return the record of finished assets.

    Raises:
        DataError: they were made for another model, or a file has changed since.
    """
    record = read_record(folder / ASSETS, AssetsRecord)
    if record.model_hash != model_hash:
        raise DataError(f"{folder}: was made for another model; make it again.")
    for name, sha256 in record.files.items():
        if not is_plain_name(name):
            raise DataError(
                f"{folder}: lists {name!r}, which is not one of its files; make it again."
            )
        path = folder / name
        if not path.is_file() or sha256_of(path) != sha256:
            raise DataError(f"{path}: missing or changed since it was made; make it again.")
    return record
