"""Logs the edited model of a run to MLflow, as the folder that `EditedModel.save_pretrained` wrote.

Nothing in it is pickled. Its `MLmodel` file names one flavour, `grace_bench`, so that MLflow lists,
registers and downloads the folder; `EditedModel.from_pretrained` loads it. MLflow's own
`pyfunc.load_model` does not, as a pyfunc model of a class would be a pickle.
"""

from __future__ import annotations

from pathlib import Path

from grace_bench import __version__
from grace_bench.jobs.locks import exclusive
from grace_bench.reporting.mlflow.export import LOCK
from grace_bench.reporting.mlflow.records import TAG, MlflowExport
from grace_bench.reporting.mlflow.store import connect, mlflow_errors

NAME = "edited-model"


def log_model(saved: Path, run_id: str, export: MlflowExport, summary_folder: Path) -> str:
    """Log a saved model for a run, once, and return MLflow's URI of it: `models:/m-...`.

    Args:
        saved: the folder that `EditedModel.save_pretrained` wrote; an `MLmodel` file is added.
        run_id: of the run that it was loaded from.
        export: of the run's suite, by `track`.
        summary_folder: the suite's folder.

    Raises:
        ResultError: the server or the database cannot be reached or written, or another process
            has been exporting this folder for a minute.
    """
    source = export.runs[run_id]["mlflow_run_id"]
    uri = export.tracking_uri
    with (
        exclusive(summary_folder / LOCK, "exporting this folder to MLflow"),
        mlflow_errors(uri),
    ):
        client = connect(uri)
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        where = f"source_run_id = '{source}'"
        for found in client.search_logged_models([export.experiment_id], where):
            if found.status == "READY":
                return found.model_uri
            client.delete_logged_model(found.model_id)  # an earlier call was killed
        tags = {TAG + "run_id": run_id, TAG + "version": __version__}
        made = client.create_logged_model(export.experiment_id, NAME, source, tags)
        pointer = Model(artifact_path=NAME, run_id=source, model_id=made.model_id)
        pointer.add_flavor(
            "grace_bench",
            version=__version__,
            loader="grace_bench.library.EditedModel.from_pretrained",
        )
        pointer.save(saved / "MLmodel")
        client.log_model_artifacts(made.model_id, str(saved))
        client.finalize_logged_model(made.model_id, "READY")
        client.log_outputs(source, [LoggedModelOutput(made.model_id, 0)])
        return made.model_uri
