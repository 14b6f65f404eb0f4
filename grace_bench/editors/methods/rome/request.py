"""What ROME reads from an edit: its tokens, its target and its subject's position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grace_bench.codebook.keys import IGNORED
from grace_bench.errors import EditorError

if TYPE_CHECKING:
    from grace_bench.editors.base import EditBatch


@dataclass(frozen=True)
class Request:
    """An edit without its padding.

    Args:
        tokens: (L,) prompt and target.
        labels: (L,) the target, everything else masked.
        subject: columns [start, end) of the subject, whose last token gives the key.
        head: number of start tokens, which stay before any prefix.
        query: the token that gives the key, "subject_last" or "prompt_last".
    """

    tokens: Tensor
    labels: Tensor
    subject: tuple[int, int]
    head: int
    query: str

    def behind(self, prefixes: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return a batch with one prefix per row, and the key's column (N,) in each row."""
        rows, labels = [], []
        for prefix in prefixes:
            masked = torch.full_like(prefix, IGNORED)
            rows.append(torch.cat([self.tokens[: self.head], prefix, self.tokens[self.head :]]))
            labels.append(torch.cat([self.labels[: self.head], masked, self.labels[self.head :]]))
        lengths = [len(prefix) for prefix in prefixes]
        column = self.subject[1] - 1
        moved = 0 if column < self.head else 1  # the start token stays where it is
        columns = moved * self.tokens.new_tensor(lengths) + column
        inputs = {
            "input_ids": pad_sequence(rows, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(r) for r in rows], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }
        return inputs, columns

    def essence(self, suffix: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Return the prompt '{subject} is a' (1, E) and the key's column (1,) in it.

        None if the edit's own prompt equals it, as its continuation must change then.
        """
        start, end = self.subject
        parts = [self.tokens[: min(self.head, start)], self.tokens[start:end]]
        column = sum(map(len, parts)) - 1
        tokens = torch.cat([*parts, self.tokens.new_tensor(list(suffix))])
        target_follows = len(tokens) < len(self.labels) and self.labels[len(tokens)] != IGNORED
        if target_follows and torch.equal(tokens, self.tokens[: len(tokens)]):
            return None
        return tokens[None], self.tokens.new_tensor([column])


def read_request(batch: EditBatch, query: str, start_token: int | None) -> Request:
    """Return an edit without its padding.

    Args:
        batch: the edit.
        query: the token that gives the key.
        start_token: the model's, to look for if the edit doesn't say how many it begins with.

    Raises:
        EditorError: it is not one edit with a target, or its subject is not before the target.
    """
    ids, labels = batch.inputs["input_ids"], batch.inputs.get("labels")
    if ids.shape[0] != 1 or labels is None or labels.shape != ids.shape:
        raise EditorError(
            "ROME makes one edit at a time, with a label for each token; use a batch of one."
        )
    mask = batch.inputs.get("attention_mask")
    real = torch.ones_like(ids[0]).bool() if mask is None else mask[0].bool()
    tokens, labels = ids[0][real], labels[0][real]
    labels[:1] = IGNORED  # nothing predicts the first token
    target = (labels != IGNORED).nonzero().flatten().tolist()
    if not target:
        raise EditorError("the edit has no target; pass labels that are not all masked.")
    subject = (target[0] - 1, target[0])
    if batch.subject is None:
        query = "prompt_last"
    if query == "subject_last":
        start, end = batch.subject
        if not 0 <= start < end <= len(real) or not real[start:end].all():
            raise EditorError(
                f"the edit's subject [{start}, {end}) is not a span of tokens in its "
                f"{len(real)} columns; pass it as columns [start, end) of input_ids."
            )
        padding = int((~real[:start]).sum())
        subject = (start - padding, end - padding)
        if subject[1] > target[-1]:
            raise EditorError(
                "no target follows the edit's subject, so its key cannot produce one; use "
                "query: prompt_last."
            )
    head = batch.starts
    if head is None:
        head = int(tokens[0].item() == start_token)
    return Request(tokens, labels, subject, head=min(head, target[0]), query=query)
