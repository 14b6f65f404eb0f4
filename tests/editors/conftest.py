"""Tiny random models, built from configs, and edits for them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tiny_models import make
from torch import Tensor, nn

LAYERS = {
    "t5": "encoder.block[1].layer[1].DenseReluDense.wo.weight",
    "bert": "bert.encoder.layer[0].output.dense.weight",
    "gpt2": "transformer.h[0].mlp.c_fc.weight",
}


@dataclass
class Case:
    """A model, the layer to edit, and how to make batches for it."""

    kind: str
    model: nn.Module
    layer: str

    def inputs(self, prompt: list[int], label: list[int]) -> dict[str, Tensor]:
        """Return the arguments of one example, unpadded."""
        return self.batch([(prompt, label)])

    def batch(
        self, examples: list[tuple[list[int], list[int]]], side: str = "right"
    ) -> dict[str, Tensor]:
        """Return a padded batch; T5's labels are always padded at the right."""
        if self.kind == "bert":
            rows = [prompt for prompt, _ in examples]
            labels = torch.tensor([(label[0] + 1) % 3 for _, label in examples])
        elif self.kind == "t5":
            rows = [prompt for prompt, _ in examples]
            labels = pad([label for _, label in examples], -100, "right")
        else:
            rows = [prompt + label for prompt, label in examples]
            labels = pad([[-100] * len(prompt) + label for prompt, label in examples], -100, side)
        mask = pad([[1] * len(row) for row in rows], 0, side)
        inputs = {"input_ids": pad(rows, 0, side), "attention_mask": mask, "labels": labels}
        if self.kind != "t5":
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        return inputs

    def prompts(self, prompts: list[list[int]], side: str) -> dict[str, Tensor]:
        """Return the arguments of generate()."""
        mask = pad([[1] * len(row) for row in prompts], 0, side)
        return {"input_ids": pad(prompts, 0, side), "attention_mask": mask}

    @torch.no_grad()
    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the model's logits."""
        return self.model(**inputs).logits

    @torch.no_grad()
    def loss(self, inputs: dict[str, Tensor]) -> float:
        """Return the model's loss."""
        return self.model(**inputs).loss.item()


def pad(rows: list[list[int]], fill: int, side: str) -> Tensor:
    """Return rows of one length."""
    width = max(map(len, rows))
    return torch.tensor(
        [
            row + [fill] * (width - len(row))
            if side == "right"
            else [fill] * (width - len(row)) + row
            for row in rows
        ]
    )


SHAPES = {
    "t5": {
        "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
        "feed_forward_proj": "relu", "pad_token_id": 0, "eos_token_id": 1,
    },
    "bert": {
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0,
        "initializer_range": 0.3,
    },
    "gpt2": {
        "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.3,
    },
}  # fmt: skip
"""Of models whose weights are large enough to make inputs differ."""


def build(kind: str, seed: int = 0) -> Case:
    """Build a tiny random model."""
    model = make(kind, seed, **SHAPES[kind])
    if kind == "gpt2":
        model.generation_config.pad_token_id = 0
    return Case(kind, model, LAYERS[kind])


@pytest.fixture(params=["t5", "bert", "gpt2"])
def case(request: pytest.FixtureRequest) -> Case:
    """A fresh tiny model of each kind."""
    return build(request.param)


@pytest.fixture
def t5() -> Case:
    """A fresh tiny T5."""
    return build("t5")


@pytest.fixture
def gpt2() -> Case:
    """A fresh tiny GPT-2."""
    return build("gpt2")


@pytest.fixture
def make_case():
    """The builder itself, for tests that need two models alike."""
    return build


@pytest.fixture(autouse=True)
def one_thread():
    """Run with one thread: other tests share the processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CAUSAL_ONLY = ("rome",)
"""Editors of causal language models alone: their tests on other models are not collected."""


def pytest_collection_modifyitems(config, items):
    """Leave out what an editor refuses by design; a skip would be a failure in CI."""

    def refused(item) -> bool:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        kind = parameters.get("case", parameters.get("kind"))
        return parameters.get("name") in CAUSAL_ONLY and kind in ("t5", "bert")

    left_out = [item for item in items if refused(item)]
    items[:] = [item for item in items if not refused(item)]
    config.hook.pytest_deselected(items=left_out)
