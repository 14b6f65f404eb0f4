"""The schema of suites: every setting with its type, range, default and meaning.

`grace_bench.suite.compose` composes a suite from the files in `config/` and checks it against this.
Torch-free: the Snakefile reads suites through both at every parse.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from grace_bench.errors import unknown_name
from grace_bench.suite.resources import ResourcesConfig
from grace_bench.suite.safe_yaml import shown, with_numbers
from grace_bench.suite.section import Name, Section


class TrainingConfig(Section):
    """How a base model is trained or fine-tuned by the workflow (AdamW, linear warm-up, cosine)."""

    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(32, ge=1, description="examples computed at once")
    accumulate: int = Field(
        1,
        ge=1,
        description="batches per step; gradients are averaged over all label tokens, so 2 batches "
        "of 8 train like one of 16, in less memory",
    )
    learning_rate: float = Field(gt=0, description="peak learning rate")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="keeps a small model from being overconfident"
    )
    freeze: tuple[str, ...] = Field((), description="name prefixes of frozen parameters")
    seed: int | None = Field(
        None,
        ge=0,
        description="seed of new weights and of the order of examples; null: the run's, so that "
        "each seed has its own base model; a number: one base model for all seeds",
    )
    checkpoint_minutes: float = Field(
        5.0,
        ge=0,
        description="minutes between checkpoints, from which a stopped training resumes; 0: none",
    )


class PretrainedSource(Section):
    """Existing weights: a hub id, a local folder, or a folder of an installed package."""

    kind: Literal["hub", "folder", "package"] = Field(description="where they are")
    id: str = Field(min_length=1, description="hub id, folder path or package name")
    revision: str | None = Field(None, description="hub revision; recommended for hub ids")
    subfolder: str = Field("", description="folder inside the package or repository")
    gguf: str | None = Field(
        None,
        pattern=r"^[^/\\]+\.gguf$",
        description="GGUF file with weights (dequantised) and tokenizer",
    )
    tokenizer: str | None = Field(
        None, description="hub id or folder of the tokenizer, if the weights come without one"
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="expected hash of model.safetensors, or of the GGUF file",
    )


class ScratchSource(Section):
    """A model built from a configuration, with a tokenizer trained on the data set's train role."""

    kind: Literal["scratch"] = Field(description="built here")
    architecture: Literal["t5", "gpt2", "bert"] = Field(description="model family")
    shape: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="keys of the Hugging Face configuration"
    )
    vocabulary_size: int = Field(2000, ge=300, description="size of the byte-level BPE vocabulary")

    _numbers = field_validator("shape", mode="before")(with_numbers)


class ModelConfig(Section):
    """A base model: where its weights come from, how it is trained, which layer is edited."""

    name: Name = Field(description="the file's name")
    label: str = Field(description="name in tables and figures")
    source: PretrainedSource | ScratchSource = Field(
        discriminator="kind", description="where the weights come from"
    )
    layer: str = Field(min_length=1, description="dotted name of the edited module")
    training: TrainingConfig | None = Field(
        None, description="how it is trained; null: used unchanged"
    )
    max_length: int = Field(128, ge=4, description="longest input in tokens")
    start_token: str | None = Field(
        None,
        description="token that texts start with, empty for none; null: the tokenizer's",
    )
    end_token: str | None = Field(
        None,
        min_length=1,
        description="token that answers end with; null: the tokenizer's end-of-sequence token",
    )


class DatasetConfig(Section):
    """A data set: its builder with options, and the task its rows are for."""

    name: Name = Field(description="the file's name")
    label: str = Field(description="name in tables and figures")
    task: str = Field(
        description="what the rows are for: question_answering, classification, "
        "language_modelling, or a plug-in's"
    )
    builder: str = Field(description="what makes the rows; options below")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the builder")
    generate: bool = Field(
        True,
        description="language modelling: also generate and record a continuation of each passage; "
        "perplexity needs none, and it takes most of an evaluation's time",
    )

    @model_validator(mode="after")
    def _answers_are_generated(self) -> DatasetConfig:
        if not self.generate and self.task != "language_modelling":
            raise ValueError(f"'generate: false' is for language modelling, not for {self.task}")
        return self


class EditorConfig(Section):
    """An editor with its hyperparameters; its class supplies the others' defaults."""

    name: Name
    label: str = Field(description="name in tables and figures")
    editor: str = Field(description="registered editor")
    hyperparameters: dict[str, Any] = Field(default_factory=dict)


class StreamConfig(Section):
    """Which edits arrive, and in which order."""

    facts: int | None = Field(64, ge=1, description="use only the first N facts; null: all")
    max_edits: int | None = Field(None, ge=1, description="stop after N edits")
    order: Literal["shuffled", "given"] = Field(
        "shuffled",
        description="by the run's seed, or the data set's order (terms, time)",
    )
    edit: Literal["errors", "all"] = Field(
        "errors", description="edit only what is wrong when it arrives, or everything"
    )


class ProbeConfig(Section):
    """When the roles are evaluated, and on how many examples."""

    every: int = Field(16, ge=1, description="edits between probes; a final probe always runs")
    upstream: int | None = Field(None, ge=1, description="examples of upstream; null: all")
    holdout: int | None = Field(None, ge=1, description="examples of holdout; null: all")
    accurate: int | None = Field(None, ge=1, description="examples of accurate; null: all")
    batch_size: int = Field(64, ge=1, description="examples evaluated at once")
    latency: int | None = Field(
        None,
        ge=1,
        description="after each probe, time forward passes on N inputs of upstream, with and "
        "without the editor; null: none",
    )

    @model_serializer(mode="wrap")
    def _no_latency_unless_asked(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Absent unless set, so that hashes of runs without it stay the same.
        settings = handler(self)
        if self.latency is None:
            settings.pop("latency", None)
        return settings


class ComputeConfig(Section):
    """Where and how numbers are computed."""

    device: str = Field(
        "auto",
        description="auto, cpu, mps, cuda or cuda:1; auto uses a GPU if there is one",
    )

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, name: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
            raise ValueError(f"must be auto, cpu, mps, cuda or cuda:1 (got {shown(name)})")
        return name

    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="autocast type of forward passes; weights stay float32"
    )
    threads: int = Field(1, ge=1, le=256, description="CPU threads of a run")
    engine: Literal["lean", "replay", "direct"] = Field(
        "lean",
        description="direct runs the whole model at every gradient step and for every evaluated "
        "example; replay computes only what edits can change, with bit-identical results; lean "
        "also skips logits (and for GRACE token positions) that no loss reads, which may change "
        "the last bits",
    )
    edits_at_once: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto",
        description="edits whose values an editor may train in one batch before it makes them one "
        "by one; auto: as many as fit into 512 tokens",
    )


def base_model_name(model: str, dataset: str, seed: int | None) -> str:
    """Return the name of a base model within a suite: "facts-t5-facts-qa/seed-0".

    Args:
        model: its name.
        dataset: name of its data set.
        seed: of its training; None: it is not trained here and is "pretrained".
    """
    return f"{model}-{dataset}/{'pretrained' if seed is None else f'seed-{seed}'}"


class RunSpec(Section):
    """Everything a run depends on: model x data set x editor x hyperparameters x seed."""

    suite: Name
    seed: int = Field(ge=0)
    model: ModelConfig
    dataset: DatasetConfig
    editor: EditorConfig
    stream: StreamConfig = StreamConfig()
    probes: ProbeConfig = ProbeConfig()
    compute: ComputeConfig = ComputeConfig()

    @field_validator("model")
    @classmethod
    def _trained_with_the_seed_of_the_run(
        cls, model: ModelConfig, info: ValidationInfo
    ) -> ModelConfig:
        if model.training is None or model.training.seed is not None:
            return model
        training = model.training.model_copy(update={"seed": info.data.get("seed", 0)})
        return model.model_copy(update={"training": training})

    @property
    def base_model(self) -> str:
        """The base model within a suite (`base_model_name`)."""
        training = self.model.training
        seed = None if training is None else training.seed
        return base_model_name(self.model.name, self.dataset.name, seed)


class ExperimentConfig(Section):
    """One model on one data set, with deviations from the suite's common settings."""

    model: ModelConfig = Field(description="a name, or a name with overrides")
    dataset: DatasetConfig = Field(description="a name, or a name with overrides")
    stream: StreamConfig = Field(description="overrides the suite's `stream`")
    probes: ProbeConfig = Field(description="overrides the suite's `probes`")


class EditorEntry(Section):
    """One editor of a suite, with an optional sweep and per-data-set hyperparameters."""

    name: Name = Field(description="the file's name")
    label: str = Field(description="name in tables and figures")
    editor: str = Field(description="registered editor")
    hyperparameters: dict[str, Any] = Field(
        default_factory=dict, description="of the editor, see below"
    )
    per_dataset: dict[Name, dict[str, Any]] = Field(
        default_factory=dict, description="hyperparameters on one data set"
    )
    sweep: dict[str, list[Any]] = Field(
        default_factory=dict, description="lists of values; their product is also run"
    )
    datasets: list[Name] | None = Field(None, description="only on these; null: all")

    _numbers = field_validator("hyperparameters", "per_dataset", "sweep", mode="before")(
        with_numbers
    )

    @field_validator("sweep")
    @classmethod
    def _no_empty_sweep(cls, sweep: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in sweep.items():
            if not values:
                raise ValueError(f"the sweep over '{key}' has no values")
        return sweep


class SuiteConfig(Section):
    """A complete suite, every name resolved."""

    COMPOSED_KEYS: ClassVar[tuple[str, ...]] = ("stream", "probes", "set")

    name: Name = Field(description="results go to results/<name>/")
    description: str = Field("", description="for people")
    experiments: list[ExperimentConfig] = Field(
        min_length=1, description="models on data sets; `stream` and `probes` beside it are shared"
    )
    editors: list[EditorEntry] = Field(
        min_length=1, description="names, or names with overrides; each on every experiment"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0],
        min_length=1,
        description="one run each: order of the stream, editor's randomness, training of the base "
        "model",
    )
    compute: ComputeConfig = Field(ComputeConfig(), description="where numbers are computed")
    toy: bool = Field(False, description="draw the paper's toy (Fig. 2) beside the suite's figures")
    bundle: int = Field(
        1,
        ge=1,
        le=200,
        description="runs of one model and data set that one job does, one after the other, "
        "loading the model once: for suites of many short runs; results are the same",
    )
    resources: ResourcesConfig = Field(
        default_factory=ResourcesConfig, description="what jobs ask a cluster for"
    )

    @model_validator(mode="after")
    def _resources_are_for_models_of_the_suite(self) -> SuiteConfig:
        known = {experiment.model.name for experiment in self.experiments}
        for model in self.resources.models:
            if model not in known:
                raise ValueError(unknown_name("model", model, known, "resources.models"))
        return self

    @model_validator(mode="after")
    def _unique(self) -> SuiteConfig:
        pairs = [(e.model.name, e.dataset.name) for e in self.experiments]
        if len(set(pairs)) < len(pairs):
            raise ValueError("the same model and data set appear twice under 'experiments'")
        folders: dict[str, tuple[str, str]] = {}
        for model, dataset in pairs:
            other = folders.setdefault(f"{model}-{dataset}", (model, dataset))
            if other != (model, dataset):
                raise ValueError(
                    f"model '{model}' on '{dataset}' and model '{other[0]}' on '{other[1]}' would "
                    "share a folder; rename one of them"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed appears twice under 'seeds'")
        known = {dataset for _, dataset in pairs}
        for index, entry in enumerate(self.editors):
            for dataset in entry.datasets or ():
                if dataset not in known:
                    raise ValueError(
                        unknown_name("data set", dataset, known, f"editors[{index}].datasets")
                    )
        for name in known:
            configs = {
                e.dataset.model_dump_json() for e in self.experiments if e.dataset.name == name
            }
            if len(configs) > 1:
                raise ValueError(f"data set '{name}' appears twice with different options")
        return self
