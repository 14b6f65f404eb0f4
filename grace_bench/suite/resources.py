"""What jobs ask a cluster for. No result depends on it. Torch-free."""

from __future__ import annotations

from pydantic import Field

from grace_bench.suite.section import Name, Section


class JobResources(Section):
    """What a job asks a cluster for; keys that are not given keep their defaults."""

    gpu: int | None = Field(None, ge=0, description="GPUs, passed to Slurm as `--gpus`")
    mem_mb: int | None = Field(None, ge=1, description="main memory in MB, times the attempt")
    runtime: int | None = Field(None, ge=1, description="minutes, times the attempt")


class ModelResources(Section):
    """What the jobs that need one model ask a cluster for."""

    prepare_model: JobResources = Field(
        JobResources(), description="preparing one base model (4000 MB, 120 minutes)"
    )
    baseline: JobResources = Field(
        JobResources(), description="its unedited predictions for every role (4000 MB, 60 minutes)"
    )
    prepare_editor: JobResources = Field(
        JobResources(),
        description="making an editor's assets (MEND's transform, say; 4000 MB, 240 minutes)",
    )
    edit: JobResources = Field(JobResources(), description="one run (4000 MB, 240 minutes)")


class ResourcesConfig(ModelResources):
    """What jobs ask a cluster for, by rule; no result depends on it."""

    prepare_data: JobResources = Field(
        JobResources(), description="preparing one data set (2000 MB, 20 minutes)"
    )
    models: dict[Name, ModelResources] = Field(
        default_factory=dict, description="deviations for one model, by rule"
    )

    def amount(
        self, rule: str, resource: str, model: str | None, attempt: int, runs: int = 1
    ) -> int:
        """Return how much of a resource a job asks for at its attempt (1: the first).

        Args:
            rule: "prepare_data", "prepare_model", "baseline", "prepare_editor" or "edit".
            resource: "gpu", "mem_mb" or "runtime".
            model: of the job; None: it is for no model in particular.
            attempt: memory and time grow with it, GPUs do not.
            runs: number of runs in the job; time grows with it.
        """
        layers = [DEFAULT_RESOURCES[rule], getattr(self, rule)]
        if model in self.models:
            layers.append(getattr(self.models[model], rule))
        found = [amount for layer in layers if (amount := getattr(layer, resource)) is not None]
        amount = found[-1] if resource == "gpu" else found[-1] * attempt
        return amount * runs if resource == "runtime" else amount


DEFAULT_RESOURCES = {
    "prepare_data": JobResources(gpu=0, mem_mb=2000, runtime=20),
    "prepare_model": JobResources(gpu=0, mem_mb=4000, runtime=120),
    "baseline": JobResources(gpu=0, mem_mb=4000, runtime=60),
    "prepare_editor": JobResources(gpu=0, mem_mb=4000, runtime=240),
    "edit": JobResources(gpu=0, mem_mb=4000, runtime=240),
}
"""Defaults, for small models on CPUs."""
