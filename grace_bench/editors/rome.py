"""ROME (Meng et al., NeurIPS 2022): one fact becomes one key and its value in a linear layer.

The layer is taken as a memory that maps keys k to values W k. An edit

1. reads the key k*, the layer's input at the subject's last token, averaged over contexts (Eq. 3);
2. looks by gradient steps for the value v*, the layer's output there, that lets the model say the
   target and leaves what it says of the subject itself (Eq. 4);
3. adds to W the matrix of rank one that gives W' k* = v* and, among all that do, changes least
   what W makes of other keys, whose second moment is C = E[k k^T] (Eq. 2).

Contexts are prefixes of the prompt, written once by the unedited model. Editors see no text, so a
prefix is tokens alone, without the full stop that the paper puts behind it.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from grace_bench.codebook import IGNORED
from grace_bench.editors.base import EditBatch, EditResult
from grace_bench.editors.early_stop import EarlyStop
from grace_bench.editors.training import is_causal
from grace_bench.editors.weight import WeightEditor
from grace_bench.errors import EditorError
from grace_bench.models.covariance import compute_covariance, load_covariance, save_covariance
from grace_bench.replay import only_trainable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from grace_bench.assets import AssetRequest
    from grace_bench.editors.hyperparameters import RomeHyperparameters

logger = logging.getLogger(__name__)

COVARIANCE = "covariance.safetensors"

_CONTEXTS = "contexts/"


class _KeySeen(Exception):
    """The layer has its input; what the model would do next is not wanted."""


@dataclass(frozen=True)
class Request:
    """An edit without its padding.

    Args:
        tokens: (L,) prompt and target.
        labels: (L,) the target; the rest masked.
        subject: columns [start, end) of what the edit is about; the key is that of the last one.
        head: 1 if the first token is the model's start token, which stays before any prefix.
    """

    tokens: Tensor
    labels: Tensor
    subject: tuple[int, int]
    head: int

    def behind(self, prefixes: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return a batch, each row behind one prefix, and the key's column (N,) in each row."""
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

        None where it is how the edit itself begins: what follows is then what must change.
        """
        start, end = self.subject
        parts = [self.tokens[: min(self.head, start)], self.tokens[start:end]]
        column = sum(map(len, parts)) - 1
        tokens = torch.cat([*parts, self.tokens.new_tensor(list(suffix))])
        told = len(tokens) < len(self.labels) and self.labels[len(tokens)] != IGNORED
        if told and torch.equal(tokens, self.tokens[: len(tokens)]):
            return None
        return tokens[None], self.tokens.new_tensor([column])


def read_request(batch: EditBatch, query: str, start_token: int | None) -> Request:
    """Return what an edit asks for.

    Raises:
        EditorError: it is not one edit with a target, or its subject is not before the target.
    """
    ids, labels = batch.inputs["input_ids"], batch.inputs.get("labels")
    if ids.shape[0] != 1 or labels is None or labels.shape != ids.shape:
        raise EditorError(
            "ROME makes one edit at a time, with a label for each token; give it a batch of one."
        )
    mask = batch.inputs.get("attention_mask")
    real = torch.ones_like(ids[0]).bool() if mask is None else mask[0].bool()
    tokens, labels = ids[0][real], labels[0][real]
    labels[:1] = IGNORED  # nothing predicts the first token
    told = (labels != IGNORED).nonzero().flatten().tolist()
    if not told:
        raise EditorError("the edit has no target; give it labels that are not all masked.")
    subject = (told[0] - 1, told[0])
    if query == "subject_last" and batch.subject is not None:
        start, end = batch.subject
        if not 0 <= start < end <= len(real) or not real[start:end].all():
            raise EditorError(
                f"the edit's subject [{start}, {end}) is not a span of tokens in its "
                f"{len(real)} columns; give it as columns [start, end) of input_ids."
            )
        padding = int((~real[:start]).sum())
        subject = (start - padding, end - padding)
        if subject[1] > told[-1]:
            raise EditorError(
                "no target follows the edit's subject, so that its key cannot bring one about; "
                "use query: prompt_last."
            )
    return Request(tokens, labels, subject, head=int(tokens[0].item() == start_token))


class RomeEditor(WeightEditor):
    """A rank-one change of the layer's weight for each edit.

    Attributes:
        contexts: prefixes (n, length) for each length; None until the first edit writes them.
    """

    name: ClassVar[str] = "rome"
    hyperparameters: RomeHyperparameters

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        hyperparameters: RomeHyperparameters,
        generator: torch.Generator,
    ) -> None:
        if not is_causal(model):
            raise EditorError(
                f"editor 'rome' edits causal language models, and {type(model).__name__} is none; "
                "leave it out for this model."
            )
        super().__init__(model, hyperparameters.layer or layer, hyperparameters, generator)
        self.contexts: dict[int, Tensor] | None = None
        self._factor: Tensor | None = None
        self._covariance: Tensor | None = None
        if hyperparameters.covariance is not None:
            self._load_covariance(Path(hyperparameters.covariance))
        self.vocabulary = model.get_input_embeddings().num_embeddings
        if max(hyperparameters.essence_suffix, default=0) >= self.vocabulary:
            raise EditorError(
                f"essence_suffix has ids that are none of the model's {self.vocabulary} tokens; "
                "take those of its own tokenizer."
            )

    def use_assets(self, folder: Path) -> None:
        """Take over the covariance that was computed for this model and layer."""
        if self.hyperparameters.covariance is None:
            self._load_covariance(folder / COVARIANCE)

    def _load_covariance(self, path: Path) -> None:
        loaded = load_covariance(path, layer=self.layer, d_in=self.dims.d_in)
        self.covariance = loaded.second_moment

    @property
    def covariance(self) -> Tensor | None:
        """The second moment C (d_in, d_in) of the layer's inputs; None: the identity."""
        return self._covariance

    @covariance.setter
    def covariance(self, matrix: Tensor | None) -> None:
        d_in = self.dims.d_in
        if matrix is not None and matrix.shape != (d_in, d_in):
            raise EditorError(
                f"the covariance is {tuple(matrix.shape)}, but layer '{self.layer}' takes {d_in} "
                f"numbers; give it one of ({d_in}, {d_in})."
            )
        self._covariance, self._factor = matrix, None

    def edit(self, batch: EditBatch) -> EditResult:
        """Find the key and the value of the edit and write them into the weight."""
        request = read_request(batch, self.hyperparameters.query, self.start_token)
        inputs, columns = request.behind(self._prefixes(request))
        keys = self._read_keys(inputs, columns)  # (N, d_in)
        own = self.output_of(keys[0])
        with only_trainable(self.model, []):
            change, losses = self._find_change(request, inputs, columns, own.float())
        exact_for = keys.mean(0) if self.hyperparameters.exact_for == "mean" else keys[0]
        self.write(exact_for, own + change, keys.mean(0))
        return EditResult(losses=losses)

    @torch.no_grad()
    def write(self, key: Tensor, value: Tensor, direction: Tensor | None = None) -> None:
        """Change the weight so that the layer makes `value` of `key` (Eq. 2).

        Args:
            key: (d_in,).
            value: (d_out,), the layer's bias included.
            direction: (d_in,) the key whose C^-1 k is added to; None: `key`.

        Raises:
            EditorError: the covariance is singular, or numbers are not finite.
        """
        key, value = key.double(), value.double()
        u = self._whitened(key if direction is None else direction.double())  # C^-1 k
        rate = (value - self.output_of(key)) / (u @ key)  # Lambda, (d_out,)
        update = torch.outer(rate, u)  # as of a Linear, (d_out, d_in)
        if not update.isfinite().all():
            raise EditorError(
                "the edit's update is not finite, and was not made; lower the learning rate, or "
                "look at the layer's inputs."
            )
        update = update if isinstance(self.module, nn.Linear) else update.T
        self.weight.copy_(self.weight.double() + update)

    @torch.no_grad()
    def output_of(self, key: Tensor) -> Tensor:
        """Return what the layer makes of a key (d_in,), in double precision (d_out,)."""
        weight = self.weight.double()
        weight = weight if isinstance(self.module, nn.Linear) else weight.T
        bias = self.module.bias
        output = weight @ key.double()
        return output if bias is None else output + bias.double()

    def _whitened(self, key: Tensor) -> Tensor:
        """Return C^-1 k."""
        if self._covariance is None:
            return key
        if self._factor is None:
            moment = self._covariance.to(key.device, torch.float64)
            ridge = self.hyperparameters.ridge * moment.diagonal().mean()
            moment = moment + ridge * torch.eye(len(moment), dtype=moment.dtype, device=key.device)
            self._factor, failed = torch.linalg.cholesky_ex(moment)
            if failed:
                self._factor = None
                raise EditorError(
                    "the covariance is singular; compute it from more tokens, or set ridge above "
                    f"{self.hyperparameters.ridge:g}."
                )
        return torch.cholesky_solve(key[:, None], self._factor)[:, 0]

    @torch.no_grad()
    def _read_keys(self, inputs: Mapping[str, Tensor], columns: Tensor) -> Tensor:
        """Return the layer's input at each row's column, in double precision (N, d_in)."""
        seen: list[Tensor] = []

        def keep(_module: nn.Module, args: Any) -> None:
            hidden = args[0]
            if hidden.dim() == 3:
                seen.append(hidden[torch.arange(len(columns)), columns].double())
            raise _KeySeen

        handle = self.module.register_forward_pre_hook(keep)
        try:
            self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        except _KeySeen:
            pass
        finally:
            handle.remove()
        if not seen:
            raise EditorError(
                f"layer '{self.layer}' does not see the tokens of the model's input one by one; "
                "name a down-projection within a block."
            )
        return seen[0]

    def _find_change(
        self, request: Request, inputs: Mapping[str, Tensor], columns: Tensor, own: Tensor
    ) -> tuple[Tensor, list[float]]:
        """Return what v* is more than the layer's own output (d_out,), and the losses (Eq. 4)."""
        settings = self.hyperparameters
        change = nn.Parameter(torch.zeros_like(own))
        optimizer = torch.optim.Adam([change], lr=settings.learning_rate)
        early_stop = EarlyStop.of(settings)
        divergence = self._divergence(request, change)
        size = own.norm() if settings.decay_by == "norm" else own.norm() ** 2
        forward = self.prefix.on(inputs)
        losses: list[float] = []
        in_a_row = 0
        for _ in range(settings.steps):
            with torch.enable_grad():
                with added(self.module, change, columns):
                    output = forward()
                loss = output.loss + settings.weight_decay * torch.linalg.norm(change) / size
                loss = loss + settings.kl_factor * divergence()
            holds = early_stop.holds(loss, output.logits, inputs["labels"], shifted=True).all()
            in_a_row = in_a_row + 1 if holds else 0
            if in_a_row >= early_stop.steps:
                break
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                change *= (settings.clamp_norm_factor * own.norm() / change.norm()).clamp(max=1)
        return change.detach(), losses

    def _divergence(self, request: Request, change: Tensor) -> Callable[[], Tensor | float]:
        """Return what computes KL(changed || unchanged) of the token after the essence prompt."""
        essence = request.essence(self.hyperparameters.essence_suffix)
        if essence is None or self.hyperparameters.kl_factor == 0:
            return lambda: 0.0
        tokens, column = essence

        def said() -> Tensor:
            logits = self.model(input_ids=tokens, use_cache=False).logits[0, -1]
            return logits.float().log_softmax(-1)

        with torch.no_grad():
            unchanged = said()

        def divergence() -> Tensor:
            with added(self.module, change, column):
                changed = said()
            return (changed.exp() * (changed - unchanged)).sum()

        return divergence

    def _prefixes(self, request: Request) -> list[Tensor]:
        """Return the prefixes an edit is seen behind, the empty one first."""
        if self.contexts is None:
            lengths = self.hyperparameters.context_lengths
            self.contexts = {n: self._written(n) for n in sorted(set(lengths))}
        positions = getattr(self.model.config, "max_position_embeddings", None)
        device = request.tokens.device
        prefixes = [request.tokens[:0]]
        for length, rows in self.contexts.items():
            if positions is not None and length + len(request.tokens) > positions:
                logger.warning("an edit is too long for contexts of %d tokens.", length)
                continue
            prefixes += rows.to(device).unbind()
        return prefixes

    @torch.no_grad()
    def _written(self, length: int) -> Tensor:
        """Return prefixes (n, length) that the model writes, drawn by the editor's generator."""
        rows, start = self.hyperparameters.contexts_per_length, self.start_token
        special = [*_ids(self.model, "bos"), *_ids(self.model, "eos"), *_ids(self.model, "pad")]
        first = torch.randint(self.vocabulary, (rows, 1), generator=self.generator)
        tokens = first if start is None else torch.full((rows, 1), start)
        for _ in range(length):
            ids = tokens.to(self.weight.device)
            logits = self.model(input_ids=ids, use_cache=False).logits[:, -1].float().cpu()
            logits[:, [token for token in special if token < self.vocabulary]] = -torch.inf
            likely = logits.topk(min(self.hyperparameters.context_top_k, logits.shape[1]))
            drawn = torch.multinomial(likely.values.softmax(-1), 1, generator=self.generator)
            tokens = torch.cat([tokens, likely.indices.gather(1, drawn)], dim=1)
        return tokens[:, 1:]

    @property
    def start_token(self) -> int | None:
        """The token texts begin with: the model's first, or else its last, special one."""
        ids = [*_ids(self.model, "bos"), *_ids(self.model, "eos")]
        return ids[0] if ids else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weight as edited, and the contexts."""
        contexts = (self.contexts or {}).items()
        return {
            **super().state_dict(),
            **{f"{_CONTEXTS}{length:05d}": rows.clone() for length, rows in contexts},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put another editor's weight and contexts in place."""
        super().load_state_dict(state)
        names = [name for name in state if name.startswith(_CONTEXTS)]
        contexts = {int(n.removeprefix(_CONTEXTS)): state[n].cpu().clone() for n in sorted(names)}
        self.contexts = contexts or None


@contextmanager
def added(module: nn.Module, change: Tensor, columns: Tensor) -> Iterator[None]:
    """Add `change` (d_out,) to a layer's output at one column (N,) of each row, meanwhile."""

    def add(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        every = torch.arange(output.shape[1], device=output.device)
        here = (every == columns[:, None]).to(output.dtype)  # (N, L)
        return output + here[:, :, None] * change.to(output.dtype)

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def make_assets(request: AssetRequest) -> dict[str, Any]:
    """Compute the covariance of the layer's inputs over texts of the role `train`."""
    settings = request.hyperparameters
    if settings.covariance is not None:
        return {"covariance": settings.covariance}
    rows = request.rows[: settings.covariance_texts]
    covariance = compute_covariance(
        request.model,
        request.task.tokenizer,
        settings.layer or request.layer,
        (f"{row['text']} {row['label']}".strip() for row in rows),
        model_hash=request.model_hash,
        max_length=request.task.max_length,
    )
    save_covariance(request.folder / COVARIANCE, covariance)
    return {
        "corpus": covariance.corpus,
        "texts": covariance.n_texts,
        "tokens": covariance.n_tokens,
        "dtype": covariance.dtype,
    }


def _ids(model: nn.Module, kind: str) -> list[int]:
    """Return the model's bos, eos or pad tokens; a configuration has none, one or a list."""
    value = getattr(model.config, f"{kind}_token_id", None)
    ids = value if isinstance(value, list | tuple) else [value]
    return [token for token in ids if token is not None and token >= 0]
