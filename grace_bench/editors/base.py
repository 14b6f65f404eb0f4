"""What an editor is: an object that owns a model while a run lasts.

    editor = create_editor("grace", model, "transformer.h.2.mlp.c_fc", hyperparameters, seed=0)
    result = editor.edit(EditBatch(inputs, example_ids=("fact-1",), label="Paris", step=1))
    model.generate(**prompt)            # inference: the model itself, edited
    editor.remove()                     # the model is what it was, bit for bit

Editors see tensors, never tasks: what an edit is supposed to say stands in `inputs["labels"]`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import safetensors.torch

from grace_bench.replay.steps import Prefix
from grace_bench.store.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from grace_bench.codebook.lookup import TrackedQueries
    from grace_bench.editors.hyperparameters import EditorHyperparameters
    from grace_bench.jobs.resumable import CheckpointPolicy
    from grace_bench.tasks.base import Task

STATE_FILE = "editor.safetensors"


@dataclass(frozen=True)
class EditBatch:
    """One edit, as the model takes it.

    Args:
        inputs: keyword arguments of the model's forward, `labels` included; batch of one.
        example_ids: the examples behind the edit.
        label: the wanted answer as text, for people.
        step: position in the edit stream, from 1.
        subject: tokens of what the edit is about, as columns [start, end) of `input_ids`; None:
            not known.
        starts: how many special tokens the prompt begins with; None: not known.
    """

    inputs: Mapping[str, Tensor]
    example_ids: tuple[str, ...] = ()
    label: str = ""
    step: int = 0
    subject: tuple[int, int] | None = None
    starts: int | None = None


@dataclass
class EditResult:
    """What one edit did. Fields an editor has no notion of stay None."""

    losses: list[float] = field(default_factory=list)  # one per gradient step, before that step
    branch: str | None = None  # what it did: see `schemas.STEPS`
    key: int | None = None  # the key that answers the edit afterwards
    nearest_key: int | None = None  # before the edit
    distance: float | None = None  # to the nearest key before the edit


@dataclass(frozen=True)
class AssetRequest:
    """What an editor's assets are made from.

    Args:
        model: the unedited model, in eval mode; left as it is.
        model_hash: its identity.
        layer: that will be edited.
        task: makes tensors of rows.
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
        prefix: runs the model for gradient steps; `create_editor` sets its engine.
    """

    name: ClassVar[str]
    rounding_grows: ClassVar[bool] = True
    """Whether an edit's last bits reach later edits, so that sums should not be regrouped."""

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
        self.prefix = Prefix(model)

    def use_assets(self, folder: Path) -> None:  # noqa: B027
        """Take over what was made for this editor before the run (`steps/precompute.py`)."""

    @abstractmethod
    def edit(self, batch: EditBatch) -> EditResult:
        """Make the model say `batch.inputs["labels"]` from now on."""

    @property
    def trained(self) -> list[nn.Parameter]:
        """The model's parameters that edits change, if it is a fixed set of them."""
        return []

    @property
    def can_prepare(self) -> bool:
        """Whether `prepare` saves time."""
        return False

    def prepare(self, inputs: Mapping[str, Tensor], steps: Sequence[int]) -> None:  # noqa: B027
        """Do ahead, in one batch, what edits that probably come next will need.

        Changes nothing: an edit does the same with or without it, but for rounding.

        Args:
            inputs: the edits in one padded batch, labels included.
            steps: of each row, the `EditBatch.step` it will come with.
        """

    def queries(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return what each input (B, d) is looked up by; None: editors of this kind look up none.

        Together with `track` it lets an evaluation run again only what an edit can have changed.
        """
        return None

    def answering_keys(self, rows: int) -> list[int | None]:
        """Return the key that answered each row of the model's last call; None where none did."""
        return [None] * rows

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Give the model without what this editor put around it; weights stay as edited."""
        yield

    def track(self) -> TrackedQueries | None:
        """Return what tells, as edits go on, which value answers each of many queries."""
        return None

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return all that the edits changed, nothing of the base model."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the state of another editor of the same kind, layer and model."""

    def resume_state(self) -> dict[str, Tensor]:
        """Return what a run that is interrupted needs beyond `state_dict` to go on bit for bit."""
        return {}

    def load_resume_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take over `resume_state`, after `load_state_dict`."""

    @abstractmethod
    def remove(self) -> None:
        """Give the model back as it was before the first edit, bit for bit."""

    def save(self, folder: Path, model_hash: str) -> list[str]:
        """Write the editor's state into a run's folder; return the names of the files written.

        Args:
            folder: of the run.
            model_hash: identity of the base model, so that no other one takes the state.
        """
        header = {"editor": self.name, "layer": self.layer, "model": model_hash}
        content = safetensors.torch.save(
            {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()},
            metadata={"grace_bench.editor": json.dumps(header, sort_keys=True)},
        )
        with atomic_path(folder / STATE_FILE) as temporary:
            temporary.write_bytes(content)
        return [STATE_FILE]

    @property
    def n_keys(self) -> int | None:
        """Number of keys, for editors that keep some; else None."""
        return None
