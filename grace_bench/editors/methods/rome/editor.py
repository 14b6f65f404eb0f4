"""ROME (Meng et al., NeurIPS 2022): an edit writes one key and its value into a linear layer.

The layer is seen as a memory that maps keys k to values W k. An edit

1. reads the key k*, the layer's input at the subject's last token, averaged over contexts (Eq. 3);
2. finds, by gradient steps, the value v* (the layer's output there) that makes the model say the
   target without changing what it says about the subject otherwise (Eq. 4);
3. adds to W the rank-one matrix that gives W' k* = v* and, among all such matrices, changes the
   outputs for other keys least; their second moment is C = E[k k^T] (Eq. 2).

Contexts are prefixes of the prompt, written once by the unedited model. Editors see no text, so a
prefix consists of tokens only, without the full stop that the paper appends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from grace_bench.editors.base import AssetRequest, EditBatch, EditResult
from grace_bench.editors.methods.rome.hyperparameters import RomeHyperparameters
from grace_bench.editors.methods.rome.request import Request, read_request
from grace_bench.editors.training import is_causal, train_on_edit
from grace_bench.editors.weight import WeightEditor
from grace_bench.errors import EditorError
from grace_bench.models.architecture import layer_inputs
from grace_bench.models.covariance import compute_covariance, load_covariance, save_covariance
from grace_bench.replay.recording import only_trainable

logger = logging.getLogger(__name__)

COVARIANCE = "covariance.safetensors"

_CONTEXTS = "contexts/"


class RomeEditor(WeightEditor):
    """Makes a rank-one change of the layer's weight for each edit.

    Attributes:
        contexts: prefixes (n, length) for each length; None until the first edit writes them.
    """

    name: ClassVar[str] = "rome"
    hyperparameters: RomeHyperparameters

    def setup(self) -> None:
        """Load the covariance, if the hyperparameters name one."""
        hyperparameters = self.hyperparameters
        if not is_causal(self.model):
            raise EditorError(
                "editor 'rome' edits causal language models, and "
                f"{type(self.model).__name__} is not one; leave it out for this model."
            )
        self.layer = hyperparameters.layer or self.layer
        super().setup()
        self.contexts: dict[int, Tensor] | None = None
        self._factor: Tensor | None = None
        self._covariance: Tensor | None = None
        if hyperparameters.covariance is not None:
            self._load_covariance(Path(hyperparameters.covariance))
        self.vocabulary = self.model.get_input_embeddings().num_embeddings
        if max(hyperparameters.essence_suffix, default=0) >= self.vocabulary:
            raise EditorError(
                f"essence_suffix has ids that are none of the model's {self.vocabulary} tokens; "
                "use ids of its own tokenizer."
            )

    def use_assets(self, folder: Path) -> None:
        """Load the covariance computed for this model and layer."""
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
                f"numbers; use one of ({d_in}, {d_in})."
            )
        self._covariance, self._factor = matrix, None

    def edit(self, batch: EditBatch) -> EditResult:
        """Find the edit's key and value and write them into the weight."""
        request = read_request(batch, self.hyperparameters.query, self.start_token)
        inputs, columns = request.behind(self._prefixes(request))
        keys = self._read_keys(inputs, columns)  # (N, d_in)
        own = self.output_of(keys[0])
        with only_trainable(self.model, []):
            change, losses = self._find_change(request, inputs, columns, own.float())
        exact_for = keys.mean(0) if self.hyperparameters.exact_for == "mean" else keys[0]
        self.write(exact_for, own + change, keys.mean(0))
        return EditResult(losses=losses, branch=request.query)

    @torch.no_grad()
    def write(self, key: Tensor, value: Tensor, direction: Tensor | None = None) -> None:
        """Change the weight so that the layer maps `key` to `value` (Eq. 2).

        Args:
            key: (d_in,).
            value: (d_out,), the layer's bias included.
            direction: (d_in,) the k of the update's C^-1 k; None: `key`.

        Raises:
            EditorError: the covariance is singular, or numbers are not finite.
        """
        key, value = key.double(), value.double()
        u = self._whitened(key if direction is None else direction.double())  # C^-1 k
        rate = (value - self.output_of(key)) / (u @ key)  # Lambda, (d_out,)
        update = torch.outer(rate, u)  # as of a Linear, (d_out, d_in)
        if not update.isfinite().all():
            raise EditorError(
                "the edit produced a non-finite update and was skipped; lower the learning rate "
                "or check the layer's inputs."
            )
        update = update if isinstance(self.module, nn.Linear) else update.T
        self.weight.copy_(self.weight.double() + update)

    @torch.no_grad()
    def output_of(self, key: Tensor) -> Tensor:
        """Return the layer's output (d_out,) for a key (d_in,), in double precision."""
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

    def _read_keys(self, inputs: Mapping[str, Tensor], columns: Tensor) -> Tensor:
        """Return the layer's input at each row's column, in double precision (N, d_in)."""
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        hidden = layer_inputs(self.model, self.module, tokens)
        if hidden is None or hidden.dim() != 3:
            raise EditorError(
                f"layer '{self.layer}' does not see the tokens of the model's input one by one; "
                "name a down-projection within a block."
            )
        return hidden[torch.arange(len(columns)), columns].double()

    def _find_change(
        self, request: Request, inputs: Mapping[str, Tensor], columns: Tensor, own: Tensor
    ) -> tuple[Tensor, list[float]]:
        """Return v* minus the layer's own output (d_out,), and the losses (Eq. 4)."""
        settings = self.hyperparameters
        change = nn.Parameter(torch.zeros_like(own))
        divergence = self._divergence(request, change)
        size = own.norm() if settings.decay_by == "norm" else own.norm() ** 2

        def penalty() -> Tensor:
            decay = settings.weight_decay * torch.linalg.norm(change) / size
            return decay + settings.kl_factor * divergence()

        def shorten() -> None:
            longest = settings.clamp_norm_factor * own.norm()
            change.mul_((longest / change.norm()).clamp(max=1))

        losses = train_on_edit(
            self.replay,
            inputs,
            [change],
            settings,
            penalty=penalty,
            within=lambda: added(self.module, change, columns),
            after_step=shorten,
        )
        return change.detach(), losses

    def _divergence(self, request: Request, change: Tensor) -> Callable[[], Tensor | float]:
        """Return a function: KL(changed || unchanged) of the token after the essence prompt."""
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
        """Return the prefixes of an edit's contexts, the empty one first."""
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
        """Return prefixes (n, length) written by the model, drawn by the editor's generator."""
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
        """The token that contexts start from: the model's start token, or else its end token."""
        ids = [*_ids(self.model, "bos"), *_ids(self.model, "eos")]
        return ids[0] if ids else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the edited weight and the contexts."""
        contexts = (self.contexts or {}).items()
        return {
            **super().state_dict(),
            **{f"{_CONTEXTS}{length:05d}": rows.clone() for length, rows in contexts},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load another editor's weight and contexts."""
        super().load_state_dict(state)
        names = [name for name in state if name.startswith(_CONTEXTS)]
        contexts = {int(n.removeprefix(_CONTEXTS)): state[n].cpu().clone() for n in sorted(names)}
        self.contexts = contexts or None


@contextmanager
def added(module: nn.Module, change: Tensor, columns: Tensor) -> Iterator[None]:
    """Add `change` (d_out,) to a layer's output at each row's column (N,), within the block."""

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
        request.task.texts.ids,
        settings.layer or request.layer,
        map(request.task.whole_text, rows),
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
    """Return the model's bos, eos or pad tokens; a configuration may have several or none."""
    value = getattr(model.config, f"{kind}_token_id", None)
    ids = value if isinstance(value, list | tuple) else [value]
    return [token for token in ids if token is not None and token >= 0]
