"""The JSON records of a results folder, each described once for its writer and its readers.

    write_record(folder / MANIFEST, Manifest(dataset="zsre", ...))
    read_record(folder / MANIFEST, Manifest).data_hash

Keys that a model lacks are ignored: a later version may write more. Torch-free.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

MANIFEST = "manifest.json"
"""Record of a prepared data set."""

TRAINING = "training.json"
"""Record of a base model, trained or not."""

BASELINE = "baseline.json"
ASSETS = "assets.json"
RUN = "run.json"
PLAN = "plan.json"


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
        raise ValueError("must be a number or null")
    return value


Number = Annotated[Any, AfterValidator(_number)]
"""An int, a float or None, kept as it is."""


class Record(BaseModel):
    """Base of all records: types are not converted, and nothing changes once it is made."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Made(Record):
    """Base of the records of what runs are made from.

    Args:
        made_from: hash of everything that the work depends on; None: unknown.
    """

    made_from: str | None = None


class RoleFile(Record):
    """One role of a data set: its Parquet file, numbers of rows and facts, hashes."""

    file: str
    rows: int
    facts: int
    sha256: str
    rows_sha256: str = ""


class Manifest(Made):
    """`manifest.json` of a prepared data set.

    Args:
        options: of the builder.
        config: the data set's part of the suite.
        roles: the files by role.
        sources: where the rows come from.
        dropped: reasons and numbers of rows left out.
        also_in_train: by role, the number of rows that are in `train`, too.
        labels: the classes in the order of the model's outputs; None: there are none.
    """

    format: Literal[1] = 1
    data_hash: str
    dataset: str = ""
    task: str = ""
    options: dict[str, Any] = {}
    config: dict[str, Any] = {}
    roles: dict[str, RoleFile]
    sources: list[dict[str, Any]] = []
    dropped: dict[str, int] = {}
    also_in_train: dict[str, int] = {}
    labels: list[str] | None = None


class Upstream(Record):
    """The score of a base model on the first rows of `upstream`."""

    n: int
    measure: str
    value: Number


class TrainingRecord(Made):
    """`training.json` of a base model.

    Args:
        compute: precision and threads.
        config: the model's part of the suite.
        training: steps, losses and time; None: it was not trained here.
        sha256: of the weights.
        parameters: their number.
    """

    model: str = ""
    dataset: str = ""
    data_hash: str = ""
    compute: dict[str, Any] = {}
    config: dict[str, Any] = {}
    training: dict[str, Any] | None = None
    upstream: Upstream | None = None
    sha256: str
    parameters: int = 0
    provenance: dict[str, Any] = {}


class WeightIndex(Record):
    """A model's `model.safetensors.index.json`: the file of each tensor."""

    weight_map: dict[str, Any]


class TruncationCounts(Record):
    """Of the rows of a role: how many texts and labels are cut, how many labels are unsayable."""

    rows: int
    texts: int
    labels: int
    unsayable: int = 0


class BaselineRecord(Made):
    """`baseline.json`: averages of the unedited model's predictions, by role and measure."""

    data_hash: str
    model_hash: str
    averages: dict[str, dict[str, Number]] = {}
    truncated: dict[str, TruncationCounts] = {}
    max_length: int = 0
    measure: str = ""


class AssetFiles(Record):
    """What runs record of the assets that they used.

    Args:
        summary: what the editor says of them; `told` in files of earlier versions.
        files: hashes by name.
        seconds: taken to make them.
    """

    summary: dict[str, Any] = Field(validation_alias=AliasChoices("summary", "told"))
    files: dict[str, str]
    seconds: Number


class AssetsRecord(Made, AssetFiles):
    """`assets.json`: what an editor needs of the unedited model before its first edit."""

    format: Literal["grace-bench assets"] = "grace-bench assets"
    version: Literal[1] = 1
    data_hash: str = ""
    editor: str = ""
    settings: dict[str, Any] = {}
    layer: str = ""
    model_hash: str
    provenance: dict[str, Any] = {}

    def as_used(self) -> AssetFiles:
        """Return what a run records of them."""
        return AssetFiles(summary=self.summary, files=self.files, seconds=self.seconds)


class FailureRecord(Record):
    """How a run failed.

    Args:
        kind: "diverged", "out_of_memory" or "error".
        step: at which it failed; None: before the first.
        example_id: of that step's example.
        message: one sentence.
        type: class of the exception.
    """

    kind: str
    step: int | None = None
    example_id: str | None = None
    message: str
    type: str | None = None


class RunOutcome(Record):
    """The part of `run.json` that says whether a run is done, and with which settings.

    Args:
        content_hash: of everything that can change a number.
        model_hash: of the base model's weights.
        failure: how it failed, in any form.
    """

    status: Literal["complete", "failed"]
    content_hash: str
    model_hash: str = ""
    failure: Any = None


class OpenRecord(Record):
    """Base of records whose other keys are kept as they are: settings of any version."""

    model_config = ConfigDict(extra="allow")


class Settings(OpenRecord):
    """A part of a run's settings."""

    name: str
    label: str


class TrainingSettings(OpenRecord):
    """How the base model of a run was trained."""

    seed: int


class ModelSettings(Settings):
    """The model of a run."""

    training: TrainingSettings | None = None


class DatasetSettings(Settings):
    """The data set of a run."""

    task: str


class EditorSettings(Settings):
    """The editor of a run; `editor` is the method."""

    editor: str
    hyperparameters: dict[str, Any] = {}


class RunSettings(OpenRecord):
    """The settings of a run, as far as reports read them."""

    suite: str
    seed: int
    model: ModelSettings
    dataset: DatasetSettings
    editor: EditorSettings

    @property
    def names(self) -> tuple[str, str, str]:
        """Of the model, the data set and the editor."""
        return self.model.name, self.dataset.name, self.editor.name


class RunRecord(RunOutcome):
    """`run.json`, written last.

    Args:
        id: `model/dataset/editor/variant/seed-k`.
        variant: the hyperparameters that differ from the editor's defaults.
        fingerprint: of everything that the run's course depends on.
        spec: the settings.
        counts: numbers of steps, edits and keys.
        seconds: by what they were spent on.
        restarts: steps after which the run was resumed.
        failure: how it failed; its files hold what it did before that.
        measure: the task's main one.
        files: hashes of the files.
        rows: hashes of the tables' rows, equal for equal results.
        provenance: versions, code, machine, device.
        in_sweep: whether only a sweep reaches the settings; the plan says so.
    """

    format: Literal["grace-bench run"]
    version: Literal[1]
    id: str
    variant: str
    fingerprint: str = ""
    spec: RunSettings
    failure: FailureRecord | None = None
    counts: dict[str, Number]
    seconds: dict[str, Number]
    restarts: list[int] = []
    peak_memory_mib: Number = None
    peak_gpu_mib: Number = None
    evaluation_batch: int | None = None
    measure: str
    data_hash: str = ""
    assets: AssetFiles | None = None
    files: dict[str, str]
    rows: dict[str, str] | None = None
    provenance: dict[str, Any] | None = None
    in_sweep: bool = Field(default=False, exclude=True)

    @model_validator(mode="after")
    def _says_why_it_failed(self) -> RunRecord:
        if self.status == "failed" and self.failure is None:
            raise ValueError("does not say how the run failed")
        return self


class Labels(Record):
    """The labels of a run's model, data set and editor."""

    model_config = ConfigDict(extra="forbid")

    model: str
    dataset: str
    editor: str


class PlanEntry(Record):
    """A run of a plan."""

    id: str
    folder: str
    content_hash: str
    in_sweep: bool
    base_model: str
    labels: Labels


class Plan(Record):
    """`plan.json`: a suite's settings and its runs."""

    suite: str = ""
    settings: dict[str, Any] = {}
    runs: list[PlanEntry]


class Refusal(Record):
    """`refused.json`: what a job refused, and the hash of what it would have made."""

    made_from: str
    message: str


class LeaseRecord(Record):
    """`lease.json`: who does a piece of work, and how far it is.

    Args:
        token: of the holder, new each time.
        process: identity of the holder; None: unknown.
        job: Slurm's number of it.
        step: the last one done.
        seconds_left: the work's own estimate.
        seconds: since it began.
    """

    format: Literal["grace-bench lease"] = "grace-bench lease"
    version: Literal[1] = 1
    token: str
    host: str
    pid: Annotated[int, Field(ge=0, lt=2**31)]
    process: str | None = None
    job: str | None = None
    state: str = "preparing"
    step: int | None = None
    steps: int | None = None
    edits: int | None = None
    seconds_left: Annotated[float, Field(ge=0, lt=1e12)] | None = None
    restarts: int = 0
    seconds: float = 0.0


class CheckpointRecord(Record):
    """`checkpoint.json`: number, fingerprint and the hashes of the files of a checkpoint."""

    format: Literal["grace-bench checkpoint"] = "grace-bench checkpoint"
    version: Literal[1] = 1
    number: int
    fingerprint: str
    files: dict[str, str]
