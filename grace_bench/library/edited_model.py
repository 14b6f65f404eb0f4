"""A model that is edited in a notebook or a script: edited, asked, explained, undone, saved.

    edited = EditedModel(model, tokenizer, layer="transformer.h.2.mlp.c_fc", radius=1.0)
    receipt = edited.edit("Who wrote Emma?", "Jane Austen")
    edited.ask("Who wrote Emma?")               # "Jane Austen"
    edited.explain("Who wrote Emma?").answers   # True
    edited.undo(receipt)                        # the logits are what they were, bit for bit
    edited.save_pretrained("emma")
    EditedModel.from_pretrained("emma", model, tokenizer)

Edits go through the editors and the tasks that runs use. The model stays an ordinary Hugging Face
model: `edited.model(...)` and `transformers.pipeline` see the edits.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.editors.weight import WeightEditor
from grace_bench.errors import ConfigError, DataError, EditorError, ModelError, ResultError
from grace_bench.library.records import RECORD, Explanation, Receipt, SavedModel
from grace_bench.models.architecture import hash_of_weights
from grace_bench.models.loading import load_pretrained
from grace_bench.models.positions import usable_positions
from grace_bench.registry import EDITORS, TASKS
from grace_bench.store.files import as_os_error, describe_os_error
from grace_bench.store.json_records import read_record, write_record
from grace_bench.store.tensors import read_tensors, reading, write_tensors
from grace_bench.suite.schema import PretrainedSource
from grace_bench.tasks.base import Example, Task, to_device

STATE = "state.safetensors"
ENTRY = "grace_bench.edited_model"
LONGEST = 512


_State = tuple[dict[str, Tensor], dict[str, Any]]
"""What `Editor.snapshot` returns, in memory of its own."""


class EditedModel:
    """A Hugging Face model, its tokenizer, and the edits made to it.

    The model is changed in place, and restored by `remove`. It is put into eval mode.

    Args:
        model: causal, encoder-decoder, or a sequence classifier; on any device.
        tokenizer: of the model.
        method: name of a registered editor.
        layer: dotted name of the edited module.
        assets: folder of what MEND and ROME need before their first edit, as `grace-bench
            prepare-editor` makes it; others need none.
        task: how prompts and answers become tokens: "question_answering", "language_modelling" or
            "classification"; None: what the model is made for.
        seed: of the editor.
        max_length: longest sequence in tokens; None: 512, or what the model has.
        hyperparameters: of the editor; `grace-bench reference` lists them.

    Raises:
        ConfigError: the method or a hyperparameter is unknown or out of range, the model cannot do
            the task, or the method's assets are missing.
        ModelError: the model has no such layer.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        method: str = "grace",
        *,
        layer: str,
        assets: Path | str | None = None,
        task: str | None = None,
        seed: int = 0,
        max_length: int | None = None,
        **hyperparameters: Any,
    ) -> None:
        if EDITORS.get(method).assets and assets is None:
            raise ConfigError(
                f"method '{method}' needs assets of this model; give their folder as `assets`, "
                "which `grace-bench prepare-editor` makes."
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        self.method, self.seed = method, seed
        self.max_length = max_length or min(LONGEST, usable_positions(model.config) or LONGEST)
        kind: type[Task] = TASKS.get(task or _task_of(model))
        self.task = kind(tokenizer, model.config, self.max_length)
        self.base_hash = hash_of_weights(model)
        self.editor = create_editor(method, model, layer, hyperparameters, seed)
        if assets is not None:
            with self._unchanged_on_error():
                self.editor.use_assets(Path(assets))
        self.receipts: list[Receipt] = []
        self._next = 1
        self._start = self._state()
        self._before_last: _State | None = None

    def edit(self, prompt: str, answer: str, subject: str | None = None) -> Receipt:
        """Make the model give `answer` to `prompt` from now on.

        Args:
            prompt: a question, a text to continue, or a text to classify.
            answer: an answer, a continuation, or the name of a class.
            subject: what the prompt is about; only ROME needs it.

        Raises:
            DataError: the answer is empty, too long, or not one of the model's classes.
            EditorError: the editor cannot make the edit.
            Diverged: the edit's numbers are not finite.

        After an error the model is as before.
        """
        with self._undone_on_error() as before:
            receipt = self._edit(self._next, prompt, answer, subject)
        self._next += 1
        self._before_last = before
        self.receipts.append(receipt)
        return receipt

    def edit_all(self, edits: Iterable[tuple[str, str]]) -> list[Receipt]:
        """Make several edits, (prompt, answer) each, in order."""
        return [self.edit(prompt, answer) for prompt, answer in edits]

    def ask(self, prompt: str) -> str:
        """Return the model's greedy answer to a prompt, of 20 tokens at most, or a text's class."""
        [prediction] = self.task.predict(self.model, [self._example(prompt)])
        return prediction.text or ""

    def explain(self, prompt: str) -> Explanation:
        """Return which key is nearest to a prompt, and whether it answers.

        Raises:
            EditorError: the method has no codebook.
        """
        editor: Any = self.editor
        if editor.n_keys is None or not hasattr(editor, "codebook"):
            raise EditorError(
                f"method '{self.method}' has no codebook, so no key answers; use 'grace'."
            )
        if editor.n_keys == 0:
            return Explanation(answers=False)
        found = editor.query_layer(self._inputs(self._example(prompt)))
        key = int(found.keys[0])
        info = editor.codebook.info[key]
        return Explanation(
            answers=bool(found.fires[0]),
            key=key,
            distance=float(found.distances[0]),
            radius=float(editor.codebook.radii[key]),
            answer=info.label.text,
            prompts=tuple(r.prompt for r in self.receipts if str(r.number) in info.example_ids),
        )

    def undo(self, receipt: Receipt) -> None:
        """Take one edit back: the model is as if it had never been made.

        Undoing the last edit restores what was before it. For an earlier one, all other edits are
        made again from the start, each with the random numbers that it had; that takes their time.

        Raises:
            EditorError: the edit is not one of this model's, or was undone before.
        """
        edits = [_name(one) for one in self.receipts]
        if _name(receipt) not in edits:
            raise EditorError(
                f"edit {receipt.number} ({receipt.prompt!r}) is not one of this model's, or was "
                "undone before; `receipts` lists the edits that can be undone."
            )
        kept = [one for one in self.receipts if one.number != receipt.number]
        if _name(receipt) == edits[-1] and self._before_last is not None:
            self._restore(self._before_last)
        else:
            with self._undone_on_error():
                self._restore(self._start)
                kept = [self._edit(one.number, one.prompt, one.answer, one.subject) for one in kept]
        self.receipts, self._before_last = kept, None

    def remove(self) -> None:
        """Restore the unedited model, bit for bit; this object must not be used afterwards."""
        self.editor.remove()

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the edits and the editor's state, the codebook among it.

        The unedited model is only referred to. For others to read, there are an ordinary Hugging
        Face folder of the edited model if the method changes weights, and else the method's own
        files, such as a codebook. The record is written last.

        Raises:
            ResultError: the folder cannot be written.
        """
        folder, (tensors, replay) = Path(folder), self._state()
        try:
            (folder / RECORD).unlink(missing_ok=True)
            write_tensors(folder / STATE, tensors, ENTRY, {"format": 1, "replay": replay})
            if isinstance(self.editor, WeightEditor):
                self.model.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
            else:
                self.editor.save(folder, self.base_hash)
        except (OSError, SafetensorError) as error:
            raise ResultError(describe_os_error(folder, as_os_error(error))) from error
        saved = SavedModel(
            base=getattr(self.model.config, "_name_or_path", ""),
            base_hash=self.base_hash,
            method=self.method,
            layer=self.editor.layer,
            task=self.task.name,
            seed=self.seed,
            max_length=self.max_length,
            hyperparameters=self.editor.hyperparameters.model_dump(mode="json"),
            edits=self.receipts,
            next_number=self._next,
        )
        write_record(folder / RECORD, saved)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        assets: Path | str | None = None,
    ) -> EditedModel:
        """Load what `save_pretrained` wrote; further edits come out as if it had never been saved.

        Args:
            folder: that was written.
            model: the unedited model; None: it is loaded from where it came from.
            tokenizer: of the model.
            assets: folder of the method's assets, if it has any.

        Raises:
            DataError: the folder is incomplete or damaged.
            ModelError: the model cannot be loaded, or is another one.
        """
        folder = Path(folder)
        saved = read_record(folder / RECORD, SavedModel)
        if model is None or tokenizer is None:
            model, tokenizer = _load_base(saved, folder)
        if hash_of_weights(model) != saved.base_hash:
            raise ModelError(
                f"{folder}: the edits were made to other weights than this model's; give the "
                "unedited model that was edited."
            )
        edited = cls(
            *(model, tokenizer, saved.method),
            layer=saved.layer,
            assets=assets,
            task=saved.task,
            seed=saved.seed,
            max_length=saved.max_length,
            **saved.hyperparameters,
        )
        with edited._unchanged_on_error(), reading(folder / STATE, "editor's state"):
            header, tensors = read_tensors(folder / STATE, ENTRY, 1)
            edited._restore((tensors, header["replay"]))
        edited.receipts, edited._next = saved.edits, saved.next_number
        return edited

    def _edit(self, number: int, prompt: str, answer: str, subject: str | None) -> Receipt:
        began = time.perf_counter()
        example = self._example(prompt, answer, subject, str(number))
        batch = EditBatch.of(self.task, self.model, example, number)
        if subject and batch.subject is None:
            raise DataError(f"the subject {subject!r} is not in the prompt {prompt!r}; check it.")
        result = self.editor.edit(batch)
        self.editor.check_finite(number, result.losses)
        return Receipt(
            number=number,
            prompt=prompt,
            answer=answer,
            subject=subject,
            branch=result.branch,
            key=result.key,
            nearest_key=result.nearest_key,
            distance=result.distance,
            losses=tuple(result.losses),
            seconds=time.perf_counter() - began,
        )

    def _example(
        self, prompt: str, answer: str | None = None, subject: str | None = None, name: str = "?"
    ) -> Example:
        """Return a row; without an answer, one whose label plays no part in what is asked."""
        if answer is None:
            answer = self.model.config.id2label[0] if self.task.classifies else "?"
        row = {"example_id": name, "fact_id": name, "text": prompt, "label": answer}
        return {**row, "subject": subject, "answers": None}

    def _inputs(self, example: Example) -> dict[str, Tensor]:
        return to_device(self.task.encode([example]), self.model)

    def _state(self) -> _State:
        tensors, replay = self.editor.snapshot()
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}, replay

    def _restore(self, state: _State) -> None:
        tensors, replay = state
        self.editor.restore({name: tensor.clone() for name, tensor in tensors.items()}, replay)

    @contextmanager
    def _undone_on_error(self) -> Iterator[_State]:
        """Yield the present state, and go back to it if the block raises."""
        before = self._state()
        try:
            yield before
        except BaseException:
            self._restore(before)
            raise

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Give the model back as it was if the block, which prepares it, raises."""
        try:
            yield
        except BaseException:
            self.editor.remove()
            raise


def _name(receipt: Receipt) -> tuple[int, str, str]:
    """Return what an edit is known by; its key and losses may change when others are undone."""
    return receipt.number, receipt.prompt, receipt.answer


def _task_of(model: nn.Module) -> str:
    is_classifier = type(model).__name__.endswith("ForSequenceClassification")
    return "classification" if is_classifier else "question_answering"


def _load_base(saved: SavedModel, folder: Path) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    if not saved.base:
        raise ModelError(
            f"{folder}: does not say where the unedited model came from; give model and tokenizer."
        )
    kind: Literal["folder", "hub"] = "folder" if Path(saved.base).is_dir() else "hub"
    return load_pretrained(PretrainedSource(kind=kind, id=saved.base), saved.task, None)
