"""The editor contract: an object that owns a model during a run.

    editor = create_editor("grace", model, "transformer.h.2.mlp.c_fc", hyperparameters, seed=0)
    result = editor.edit(EditBatch(inputs, example_ids=("fact-1",), label="Paris", step=1))
    model.generate(**prompt)            # inference: the model itself, edited
    editor.remove()                     # the model is as before, bit for bit

Editors see tensors, never tasks: `inputs["labels"]` holds the wanted answer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from grace_bench.codebook.lookup import IncrementalLookup
from grace_bench.errors import Diverged
from grace_bench.jobs.resumable import CheckpointPolicy
from grace_bench.replay.steps import StepReplay
from grace_bench.store.tensors import part_of, write_tensors
from grace_bench.tasks.base import Example, Task, to_device

if TYPE_CHECKING:
    from grace_bench.editors.hyperparameters import EditorHyperparameters

STATE_FILE = "editor.safetensors"


@dataclass(frozen=True)
class EditBatch:
    """One edit, as the model takes it.

    Args:
        inputs: keyword arguments of the model's forward, `labels` included; batch of one.
        example_ids: the examples behind the edit.
        label: the wanted answer as text, for people.
        step: position in the edit stream, from 1.
        subject: tokens of the edit's subject, as columns [start, end) of `input_ids`; None if
            unknown.
        starts: number of special tokens at the prompt's beginning; None if unknown.
    """

    inputs: Mapping[str, Tensor]
    example_ids: tuple[str, ...] = ()
    label: str = ""
    step: int = 0
    subject: tuple[int, int] | None = None
    starts: int | None = None

    @classmethod
    def of(cls, task: Task, model: nn.Module, example: Example, step: int) -> EditBatch:
        """Return the edit that an example asks for, on the model's device.

        Raises:
            DataError: the example has no answer, or none that fits.
        """
        return cls(
            inputs=to_device(task.encode([example]), model),
            example_ids=(example["example_id"],),
            label=example["label"],
            step=step,
            subject=task.subject_span(example),
            starts=len(task.texts.starts),
        )


@dataclass
class EditResult:
    """What one edit did; fields that don't apply to an editor stay None."""

    losses: list[float] = field(default_factory=list)  # one per gradient step, before that step
    branch: str | None = None  # what it did: see `schemas.STEPS`
    key: int | None = None  # the key that answers the edit afterwards
    nearest_key: int | None = None  # before the edit
    distance: float | None = None  # to the nearest key before the edit
    changes: list[dict[str, Any]] = field(default_factory=list)  # of a codebook: schemas.JOURNAL


@dataclass(frozen=True)
class AssetRequest:
    """What an editor's assets are made from.

    Args:
        model: the unedited model, in eval mode; not changed.
        model_hash: its identity.
        layer: the layer to edit.
        task: turns rows into tensors.
        hyperparameters: of the editor.
        rows: of the role `train`.
        folder: to write into.
        policy: when to write checkpoints.
    """

    model: nn.Module
    model_hash: str
    layer: str
    task: Task
    hyperparameters: EditorHyperparameters
    rows: Sequence[dict[str, Any]]
    folder: Path
    policy: CheckpointPolicy


class Editor(ABC):
    """Base class of all editors.

    Args:
        model: a Hugging Face model in eval mode; owned, and changed in place, until `remove`.
        layer: dotted name of the edited module.
        hyperparameters: validated settings of this editor.
        generator: source of all randomness of this editor (CPU).

    Attributes:
        replay: runs the model for gradient steps; `create_editor` sets its engine.
    """

    name: ClassVar[str]
    accumulates_rounding: ClassVar[bool] = True
    """Whether an edit's last bits influence later edits, so that sums must not be regrouped."""

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        hyperparameters: EditorHyperparameters,
        generator: torch.Generator,
    ) -> None:
        self.model = model
        self.layer = layer
        self.hyperparameters = hyperparameters
        self.generator = generator
        self.replay = StepReplay(model)
        self.setup()

    def setup(self) -> None:  # noqa: B027
        """Prepare for the first edit; called once, at the end of `__init__`."""

    def use_assets(self, folder: Path) -> None:  # noqa: B027
        """Load what was made for this editor before the run (`steps/precompute.py`)."""

    @abstractmethod
    def edit(self, batch: EditBatch) -> EditResult:
        """Make the model say `batch.inputs["labels"]` from now on."""

    @property
    def trained(self) -> list[nn.Parameter]:
        """The model's parameters that edits change, if they are a fixed set."""
        return []

    @property
    def can_train_ahead(self) -> bool:
        """Whether `train_ahead` saves time."""
        return False

    def train_ahead(self, inputs: Mapping[str, Tensor], steps: Sequence[int]) -> None:  # noqa: B027
        """Train what the next edits will probably need, in one batch.

        It changes no result: an edit does the same without it, except for rounding.

        Args:
            inputs: the edits in one padded batch, labels included.
            steps: each row's `EditBatch.step`.
        """

    def reuse(self, trained: Mapping[int, tuple[Tensor, Sequence[float]]]) -> None:  # noqa: B027
        """Take what edits trained before, instead of training it again when they are made again.

        It changes no result.

        Args:
            trained: value and losses by `EditBatch.step`, from `codebook/journal.py`.
        """

    def queries(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return the vector (B, d) that each input is looked up by; None without look-ups.

        With `incremental_lookup`, evaluations rerun only what an edit may have changed.
        """
        return None

    def incremental_lookup(self) -> IncrementalLookup | None:
        """Return a look-up that says which value answers each query as edits go on."""
        return None

    def recorded_keys(self) -> AbstractContextManager[list[list[int | None]]]:
        """Collect which key answers each row (None: no key does).

        The list gets one entry per prompt that begins in the block, none from editors without
        keys.
        """
        return nullcontext([])

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Take what this editor put around the model away within the block; weights stay edited."""
        yield

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return all that the edits changed, nothing of the base model."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the state of another editor of the same kind, layer and model."""

    def resume_state(self) -> dict[str, Tensor]:
        """Return what an interrupted run needs besides `state_dict` to resume bit for bit."""
        return {}

    def load_resume_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Load `resume_state`, after `load_state_dict`."""

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and a JSON value from which `restore` resumes, bit for bit."""
        tensors = {
            **{f"editor.{name}": tensor for name, tensor in self.state_dict().items()},
            **{f"resume.{name}": tensor for name, tensor in self.resume_state().items()},
            "generator": self.generator.get_state(),
        }
        return tensors, self.replay.state()

    def restore(self, tensors: Mapping[str, Tensor], replay: Mapping[str, Any]) -> None:
        """Go to a state that `snapshot` returned; `tensors` may hold others, too."""
        self.load_state_dict(part_of(tensors, "editor"))
        self.load_resume_state(part_of(tensors, "resume"))
        self.generator.set_state(tensors["generator"])
        self.replay.load_state(replay)

    def check_finite(self, step: int, losses: Sequence[float]) -> None:
        """Raise Diverged if an edit's losses, or the parameters that it trained, are not finite."""
        finite = all(math.isfinite(loss) for loss in losses)
        if not (finite and all(p.isfinite().all() for p in self.trained)):
            last = f"loss {losses[-1]:.4g}" if losses else "no loss"
            raise Diverged(f"the edit of step {step} gave numbers that are not finite ({last})")

    @abstractmethod
    def remove(self) -> None:
        """Restore the model as it was before the first edit, bit for bit."""

    def save(self, folder: Path, model_hash: str) -> list[str]:
        """Write the editor's state into a run's folder; return the names of the files written.

        Args:
            folder: of the run.
            model_hash: identity of the base model that the state belongs to.
        """
        header = {"editor": self.name, "layer": self.layer, "model": model_hash}
        write_tensors(folder / STATE_FILE, self.state_dict(), "grace_bench.editor", header)
        return [STATE_FILE]

    @property
    def n_keys(self) -> int | None:
        """Number of keys, for editors that have keys; else None."""
        return None
