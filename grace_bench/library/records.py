"""What an edited model says of its edits, and what it saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from grace_bench.store.records import Record

RECORD = "edited_model.json"


class Receipt(Record):
    """What one edit did.

    Args:
        number: of the edit, from 1; none is given twice, so undone edits leave gaps.
        prompt: that was edited.
        answer: that the model gives to it from then on.
        subject: of the prompt; None: unknown.
        branch: what the editor did, as in `steps.parquet`; None: it has no branches.
        key: of the codebook, that answers the prompt; None: no key does.
        nearest_key: before the edit.
        distance: from the prompt's query to `nearest_key`.
        losses: before each gradient step; of a run's edits, the first and the last.
        seconds: that the edit took, when it was last made.
        example_id: of a run's example; None: the edit was made by hand.
    """

    number: int
    prompt: str
    answer: str
    subject: str | None = None
    branch: str | None = None
    key: int | None = None
    nearest_key: int | None = None
    distance: float | None = None
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    example_id: str | None = None

    @property
    def example(self) -> str:
        """What the edit's example is called in the codebook."""
        return self.example_id or str(self.number)


@dataclass(frozen=True)
class Explanation:
    """The key that is nearest to a prompt, and whether it answers.

    Args:
        answers: whether the prompt is within the key's radius, so that the key's value answers.
        key: the nearest one; None: the codebook is empty.
        distance: from the prompt's query to the key.
        radius: of the key.
        answer: that the key was made for.
        prompts: of the edits that the key stands for.
    """

    answers: bool
    key: int | None = None
    distance: float | None = None
    radius: float | None = None
    answer: str | None = None
    prompts: tuple[str, ...] = ()


class SavedModel(Record):
    """`edited_model.json`: how a model was edited, and by which edits.

    Args:
        base: name or folder of the unedited model.
        base_hash: of its weights.
        start_token: of texts, and `end_token` of answers; None: the tokenizer's own.
        max_new_tokens: of an answer; None: the task's own.
        next_number: of the next edit.
    """

    format: Literal["grace-bench edited model"] = "grace-bench edited model"
    version: Literal[1] = 1
    base: str
    base_hash: str
    method: str
    layer: str
    task: str
    seed: int
    max_length: int
    start_token: str | None = None
    end_token: str | None = None
    max_new_tokens: int | None = None
    compute: dict[str, Any]
    hyperparameters: dict[str, Any]
    edits: list[Receipt]
    next_number: int
