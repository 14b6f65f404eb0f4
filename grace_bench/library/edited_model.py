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

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grace_bench.codebook.codebook import Codebook
from grace_bench.codebook.journal import trained_values
from grace_bench.codebook.merge import describe_conflicts, find_conflicts
from grace_bench.errors import DataError, EditorError
from grace_bench.library import saving
from grace_bench.library.records import Explanation, Receipt, SavedModel
from grace_bench.library.session import Session, State
from grace_bench.suite.schema import ComputeConfig
from grace_bench.tasks.base import Task, to_device


class EditedModel(Session):
    """A Hugging Face model, its tokenizer, and the edits made to it.

    The model is changed in place, and restored by `remove`. It is put into eval mode.

    Args:
        model: causal, encoder-decoder, or a sequence classifier; on any device.
        tokenizer: of the model.
        method: name of a registered editor.
        layer: dotted name of the edited module.
        assets: folder of what MEND and ROME need before their first edit, as `grace-bench
            prepare-editor` makes it; others need none.
        task: how prompts and answers become tokens: "question_answering", "language_modelling",
            "classification" or a Task; None: what the model is made for.
        seed: of the editor.
        max_length: longest sequence in tokens; None: 512, or what the model has.
        compute: precision and engine; None: float32 and the engine of runs.
        hyperparameters: of the editor; `grace-bench reference` lists them.

    Attributes:
        receipts: of the edits, in order.
        journal: what they changed in the codebook, as rows of schemas.JOURNAL.
        next_number: of the next edit.

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
        task: str | Task | None = None,
        seed: int = 0,
        max_length: int | None = None,
        compute: ComputeConfig | None = None,
        **hyperparameters: Any,
    ) -> None:
        super().__init__(
            *(model, tokenizer, method),
            layer=layer,
            assets=assets,
            task=task,
            seed=seed,
            max_length=max_length,
            compute=compute,
            hyperparameters=hyperparameters,
        )
        self._before_last: State | None = None

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
        wanted = Receipt(number=self.next_number, prompt=prompt, answer=answer, subject=subject)
        example = self._example(prompt, answer, subject)
        if subject and self.task.subject_span(example) is None:
            raise DataError(f"the subject {subject!r} is not in the prompt {prompt!r}; check it.")
        with self._undone_on_error() as before:
            receipt, changes = self._edit(wanted)
        self.receipts.append(receipt)
        self.journal += changes
        self.next_number += 1
        self._before_last = before
        return receipt

    def edit_all(self, edits: Iterable[tuple[str, str]]) -> list[Receipt]:
        """Make several edits, (prompt, answer) each, in order."""
        return [self.edit(prompt, answer) for prompt, answer in edits]

    def ask(self, prompt: str) -> str:
        """Return the model's greedy answer to a prompt, or a text's class.

        It is read as in a run: up to the answer's end, and of 20 tokens at most unless the task
        says otherwise. `generate` writes more.
        """
        with self._precision():
            [prediction] = self.task.predict(self.model, [self._example(prompt)])
        return prediction.text or ""

    @torch.no_grad()
    def generate(self, prompt: str, max_new_tokens: int = 100, **options: Any) -> str:
        """Return a text that the model writes after a prompt, or as an answer to it.

        Args:
            prompt: tokenised as in an edit, so that the edit is found again.
            max_new_tokens: its longest length.
            options: of the model's own `generate`, such as `do_sample`.

        Raises:
            EditorError: the model only sorts texts into classes.
        """
        if self.task.classifies:
            raise EditorError("a classifier writes no text; `ask` returns the text's class.")
        task: Any = self.task
        ids = torch.tensor([task.prompt_ids(self._example(prompt))])
        inputs = to_device({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, self.model)
        options = {"pad_token_id": task.texts.pad, "eos_token_id": task.texts.end, **options}
        with self._precision():
            [row] = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **options)
        start = 1 if self.model.config.is_encoder_decoder else ids.shape[1]
        return task.texts.decode(row[start:].tolist())

    def explain(self, prompt: str) -> Explanation:
        """Return which key is nearest to a prompt, and whether it answers.

        Raises:
            EditorError: the method has no codebook.
        """
        codebook, editor = self.codebook, self.editor
        if len(codebook) == 0:
            return Explanation(answers=False)
        with self._precision():
            found = editor.query_layer(
                to_device(self.task.encode([self._example(prompt)]), self.model)
            )
        key = int(found.keys[0])
        info = codebook.info[key]
        return Explanation(
            answers=bool(found.fires[0]),
            key=key,
            distance=float(found.distances[0]),
            radius=float(codebook.radii[key]),
            answer=info.label.text,
            prompts=tuple(r.prompt for r in self.receipts if r.example in info.example_ids),
        )

    @property
    def codebook(self) -> Codebook:
        """The codebook of the edits.

        Raises:
            EditorError: the method has none.
        """
        codebook = getattr(self.editor, "codebook", None)
        if codebook is None:
            raise EditorError(
                f"method '{self.method}' has no codebook, so no key answers; use 'grace'."
            )
        return codebook

    def undo(self, receipt: Receipt) -> None:
        """Take one edit back: the model is as if it had never been made.

        Undoing the last edit restores what was before it. For an earlier one, all other edits are
        made again from the start, each with the random numbers that it had. Values that a codebook
        holds are used again; other editors need the time of their edits.

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
            self.receipts = kept
            self.journal = [row for row in self.journal if row["step"] != receipt.number]
        else:
            has_codebook = hasattr(self.editor, "codebook")
            trained = _trained(self.codebook, self.journal, self.receipts) if has_codebook else {}
            self._make_again(kept, trained)
        self._before_last = None

    def merge(
        self, folder: Path | str, conflicts: Literal["refuse", "newer"] = "refuse"
    ) -> list[Receipt]:
        """Add the edits of another saved model, as if they had been made after this one's.

        Nothing is trained that the other model's codebook holds; its edits get new numbers.

        Args:
            folder: by `save_pretrained`, of edits by the same method to the same layer and model.
            conflicts: "refuse": keys that give different answers to the same queries raise;
                "newer": the other model's edits are made over this one's, as any later edit.

        Raises:
            DataError: the folder is incomplete or damaged.
            EditorError: there are conflicts to refuse, or the other model was edited in another
                way.
        """
        saved, newer, rows = saving.read_codebook(Path(folder), self.base_hash, self.editor.layer)
        ours = self._saved()
        for what in ("method", "hyperparameters", "task"):
            if getattr(saved, what) != getattr(ours, what):
                raise EditorError(
                    f"{folder}: edited with {what} {getattr(saved, what)}, this model with "
                    f"{getattr(ours, what)}; merge edits that were made alike."
                )
        if conflicts == "refuse" and (found := find_conflicts(self.codebook, newer)):
            raise EditorError(describe_conflicts(found))
        shift = self.next_number - 1
        trained = {
            number + shift: (value, losses)
            for number, (value, losses) in _trained(newer, rows, saved.edits).items()
        }
        later = [one.model_copy(update={"number": one.number + shift}) for one in saved.edits]
        with self._undone_on_error():
            self.editor.reuse(trained)
            made = [self._edit(receipt) for receipt in later]
        self.receipts += [receipt for receipt, _ in made]
        self.journal += [row for _, changes in made for row in changes]
        self.next_number += saved.next_number - 1
        self._before_last = None
        return [receipt for receipt, _ in made]

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
        state = self._state()
        saving.write(Path(folder), self._saved(), self.editor, self.tokenizer, state, self.journal)

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
        saved, model, tokenizer = saving.read(Path(folder), model, tokenizer)
        edited = cls(
            *(model, tokenizer, saved.method),
            layer=saved.layer,
            assets=assets,
            task=saving.make_task(saved, model, tokenizer),
            seed=saved.seed,
            compute=ComputeConfig(**saved.compute),
            **saved.hyperparameters,
        )
        with edited._unchanged_on_error():
            edited._restore(saving.read_state(Path(folder)))
            edited.journal = saving.read_journal(Path(folder))
        edited.receipts, edited.next_number = saved.edits, saved.next_number
        return edited

    def _saved(self) -> SavedModel:
        start, end = self.task.texts.given
        return SavedModel(
            base=getattr(self.model.config, "_name_or_path", ""),
            base_hash=self.base_hash,
            method=self.method,
            layer=self.editor.layer,
            task=self.task.name,
            seed=self.seed,
            max_length=self.task.max_length,
            start_token=start,
            end_token=end,
            max_new_tokens=getattr(self.task, "max_new_tokens", None),
            compute=self.compute.model_dump(mode="json"),
            hyperparameters=self.editor.hyperparameters.model_dump(mode="json"),
            edits=self.receipts,
            next_number=self.next_number,
        )


def _name(receipt: Receipt) -> tuple[int, str, str]:
    """Return what an edit is known by; its key and losses may change when others are undone."""
    return receipt.number, receipt.prompt, receipt.answer


def _trained(
    codebook: Codebook, journal: Sequence[Mapping[str, Any]], receipts: Sequence[Receipt]
) -> dict[int, tuple[Tensor, Sequence[float]]]:
    """Return the values that edits trained, and their losses, by number."""
    losses = {receipt.number: receipt.losses for receipt in receipts}
    values = trained_values(codebook, journal)
    return {number: (value, losses[number]) for number, value in values.items()}
