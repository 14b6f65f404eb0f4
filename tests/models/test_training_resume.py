"""Training that is stopped, killed, split into parts or rounded, and what comes of it."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal

import pytest
import torch
from capitals import CPU, Capitals, dataset_config, model_config, trained
from kills import Killer
from safetensors.torch import load_file
from waiting import wait_until

from grace_bench.datasets.base import prepare
from grace_bench.datasets.options import DatasetOptions
from grace_bench.errors import GraceBenchError, Interrupted, ModelError, ResultError
from grace_bench.jobs import checkpoints, resumable
from grace_bench.jobs.checkpoints import Checkpoints
from grace_bench.steps import model as model_step
from grace_bench.steps import training_loop
from grace_bench.steps.model import prepare_model
from grace_bench.steps.training_loop import Training
from grace_bench.store import files
from grace_bench.store.files import read_json, read_parquet
from grace_bench.store.json_records import read_record
from grace_bench.store.records import TrainingRecord
from grace_bench.store.schemas import TRAINING_LOG

STEPS = 12
PLACES = (training_loop, model_step, resumable, checkpoints, files)
"""Modules whose calls are the moments at which a training is killed."""

ALWAYS = 1e-9  # minutes between checkpoints: after every step


@pytest.fixture(autouse=True)
def _checkpoints_at_any_cost(monkeypatch):
    monkeypatch.setattr(resumable, "LARGEST_SHARE", float("inf"))


ARCHITECTURES = {
    "gpt2": (
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        "transformer.h.0.mlp.c_fc",
        ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    ),
    "t5": (
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
        "encoder.block.1.layer.1.DenseReluDense.wo",
        ("dropout_rate",),
    ),
    "bert": (
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        "bert.encoder.layer.0.output.dense",
        ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("capitals")
    prepare(Capitals(DatasetOptions()), folder, task="question_answering", config={})
    return folder


def make(data, folder, kind="gpt2", precision="float32", dropout=True, **changes):
    """Prepare a tiny model; returns its record."""
    shape, layer, dropouts = ARCHITECTURES[kind]
    if not dropout:
        shape = {**shape, **dict.fromkeys(dropouts, 0.0)}
    source = {"kind": "scratch", "architecture": kind, "vocabulary_size": 300, "shape": shape}
    settings = trained(**{"steps": STEPS, "learning_rate": 3e-3, **changes})
    config = model_config(source=source, layer=layer, training=settings)
    task = "classification" if kind == "bert" else "question_answering"
    compute = CPU.model_copy(update={"precision": precision})
    return prepare_model(config, dataset_config(task), data, folder, compute)


def log_of(folder) -> list[dict]:
    rows = read_parquet(folder / "training.parquet", TRAINING_LOG).to_pylist()
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


def stop_after(monkeypatch, *steps: int) -> None:
    """Let SIGTERM come while these steps are made."""
    left, make_step = list(steps), Training.make_step

    def stopped(self):
        make_step(self)
        if self.done in left:
            left.remove(self.done)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Training, "make_step", stopped)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A model whose training nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "m"
    make(data, folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "precision", "changes"),
    [
        ("gpt2", "float32", {}),
        ("gpt2", "bfloat16", {"accumulate": 2, "batch_size": 1}),
        ("gpt2", "float16", {"label_smoothing": 0.1}),
        ("t5", "float32", {"weight_decay": 0.1}),
        ("bert", "float32", {"freeze": ["bert.embeddings"]}),
    ],
)
def test_a_stopped_training_ends_with_the_same_bytes(
    data, tmp_path, monkeypatch, kind, precision, changes
):
    expected = make(data, tmp_path / "whole", kind, precision, **changes)
    stops = [1, 7, STEPS]
    stop_after(monkeypatch, *stops)
    for step in stops:
        with pytest.raises(Interrupted, match=rf"after step {step} of 12; run the same command"):
            make(data, tmp_path / "m", kind, precision, **changes)
        assert [path.name for path in (tmp_path / "m").iterdir()] == [".training"]
    record = make(data, tmp_path / "m", kind, precision, **changes)
    assert record.sha256 == expected.sha256
    assert record.training["loss"] == expected.training["loss"]
    assert record.training["resumed_from"] == stops
    assert log_of(tmp_path / "m") == log_of(tmp_path / "whole")
    assert not (tmp_path / "m" / ".training").exists()


def run_in_a_process(data, folder) -> multiprocessing.Process:
    """Start a training in a process of its own; it exits as the command line does."""

    def run():
        try:
            make(data, folder, steps=60, checkpoint_minutes=ALWAYS)
        except GraceBenchError as error:
            os._exit(error.exit_code)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def checkpoints_in(folder) -> set[str]:
    return {path.name for path in folder.glob(".training/0*")}


@pytest.mark.slow
@pytest.mark.usefixtures("uncounted")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "ends"), [(signal.SIGKILL, {-9}), (signal.SIGTERM, {-15, 143})])
def test_trainings_killed_at_fifty_random_moments_end_with_the_same_bytes(
    data, tmp_path, number, ends
):
    killer = Killer(PLACES, number)
    expected = make(data, tmp_path / "whole", checkpoint_minutes=ALWAYS)
    killer.learn("gpt2", lambda: make(data, tmp_path / "counted", checkpoint_minutes=ALWAYS))
    while killer.kills < killer.most:
        folder = tmp_path / f"m-{killer.kills}"
        again = functools.partial(make, data, folder, checkpoint_minutes=ALWAYS)
        resumed = killer.work_until_done("gpt2", again, ends, folder / ".training")
        record = read_record(folder / "training.json", TrainingRecord)
        assert record.sha256 == expected.sha256
        assert log_of(folder) == log_of(tmp_path / "whole")
        assert not (folder / ".training").exists()
        assert record.training["resumed_from"] or not resumed
    print(f"{killer.kills} kills by signal {number}, {killer.resumed} resumed; {dict(killer.met)}")
    assert killer.kills == 50
    assert killer.resumed > killer.kills / 2


def test_a_terminated_process_has_an_exit_code_of_its_own(data, tmp_path):
    process = run_in_a_process(data, tmp_path / "m")
    wait_until(lambda: checkpoints_in(tmp_path / "m"), 60, "it writes a checkpoint")
    process.terminate()
    process.join()
    assert process.exitcode == Interrupted.exit_code == 143


def stopped_at(data, folder, monkeypatch, step: int) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted):
            make(data, folder, checkpoint_minutes=ALWAYS)


def test_a_damaged_checkpoint_costs_only_the_work_since_the_one_before(
    data, whole, tmp_path, monkeypatch, caplog
):
    stopped_at(data, tmp_path / "m", monkeypatch, 6)
    damaged = tmp_path / "m" / ".training" / "00000006" / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with caplog.at_level(logging.INFO):
        record = make(data, tmp_path / "m")
    assert record.training["resumed_from"] == [5]
    assert record.sha256 == read_json(whole / "training.json")["sha256"]
    assert "changed since it was written. It was set aside" in caplog.text
    assert "resuming from the checkpoint of step 5" in caplog.text
    assert not (tmp_path / "m" / ".training").exists()


def test_other_settings_or_data_begin_at_the_beginning(data, tmp_path, monkeypatch, caplog):
    stopped_at(data, tmp_path / "m", monkeypatch, 6)
    expected = make(data, tmp_path / "other", learning_rate=1e-3)
    with caplog.at_level(logging.WARNING):
        record = make(data, tmp_path / "m", learning_rate=1e-3)
    assert record.training["resumed_from"] == []
    assert record.sha256 == expected.sha256
    assert "made with other settings, data, weights or versions" in caplog.text


def test_checkpoints_that_cannot_be_written_stop_no_training(
    data, whole, tmp_path, monkeypatch, caplog
):
    def fail(*_, **__):
        raise ResultError("the disk is full")

    monkeypatch.setattr(Checkpoints, "write", fail)
    with caplog.at_level(logging.WARNING):
        record = make(data, tmp_path / "m", checkpoint_minutes=ALWAYS)
    assert record.sha256 == read_json(whole / "training.json")["sha256"]
    assert "no checkpoint at step 3, continuing: the disk is full" in caplog.text


def test_without_checkpoints_nothing_is_written_and_nothing_read(
    data, whole, tmp_path, monkeypatch
):
    stopped_at(data, tmp_path / "m", monkeypatch, 6)
    monkeypatch.setattr(Checkpoints, "latest", lambda _: pytest.fail("read"))
    monkeypatch.setattr(Checkpoints, "write", lambda *_: pytest.fail("written"))
    record = make(data, tmp_path / "m", checkpoint_minutes=0)
    assert record.training["resumed_from"] == []
    assert record.sha256 == read_json(whole / "training.json")["sha256"]
    assert not (tmp_path / "m" / ".training").exists()


def test_a_diverged_training_leaves_no_checkpoint(data, tmp_path):
    with pytest.raises(ModelError, match=r"lower training\.learning_rate"):
        make(data, tmp_path / "m", learning_rate=1e30, checkpoint_minutes=ALWAYS)
    assert list((tmp_path / "m").iterdir()) == []


def test_the_log_has_every_step_and_the_curve_is_its_mean(data, whole):
    rows = log_of(whole)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["examples"] for row in rows] == list(range(2, 2 * STEPS + 1, 2))
    assert rows[0]["learning_rate"] == pytest.approx(3e-3 / 2)  # two steps of warm-up
    assert rows[1]["learning_rate"] == pytest.approx(3e-3)
    training = read_json(whole / "training.json")["training"]
    mean = sum(row["loss"] for row in rows) / STEPS
    assert training["loss"] == [{"step": STEPS, "loss": pytest.approx(mean, abs=1e-6)}]
    assert training["epochs"] == 2 * STEPS / 4


def test_a_model_that_is_not_trained_has_an_empty_log(data, tmp_path):
    prepare_model(model_config(training=None), dataset_config(), data, tmp_path / "m", CPU)
    assert log_of(tmp_path / "m") == []


@pytest.mark.parametrize(("kind", "smoothing"), [("gpt2", 0.1), ("t5", 0.0), ("bert", 0.0)])
def test_parts_of_a_batch_train_as_the_whole_batch_does(
    data, tmp_path, monkeypatch, kind, smoothing
):
    gradients: dict[str, list[torch.Tensor]] = {}
    clip = torch.nn.utils.clip_grad_norm_

    def seen(parameters, largest):
        gradients.setdefault(now, [p.grad.clone() for p in parameters])  # the first step's
        clip(parameters, largest)

    monkeypatch.setattr(training_loop.nn.utils, "clip_grad_norm_", seen)
    for now, (size, parts) in {"one": (4, 1), "two": (2, 2), "uneven": (3, 2)}.items():
        settings = {"batch_size": size, "accumulate": parts, "label_smoothing": smoothing}
        make(data, tmp_path / now, kind, dropout=False, **settings)
    losses = {name: [row["loss"] for row in log_of(tmp_path / name)] for name in gradients}
    for name in ("two", "uneven"):  # labels differ in length: parts count by their tokens
        for part, one in zip(gradients[name], gradients["one"], strict=True):
            torch.testing.assert_close(part, one, rtol=1e-4, atol=1e-6)
        assert losses[name] == pytest.approx(losses["one"], rel=1e-4)


def test_lower_precision_teaches_too_and_keeps_float32_weights(data, tmp_path):
    settings = {"steps": 40, "learning_rate": 2e-2, "batch_size": 4}
    exact = make(data, tmp_path / "float32", **settings)
    for precision in ("bfloat16", "float16"):
        record = make(data, tmp_path / precision, precision=precision, **settings)
        assert record.sha256 != exact.sha256
        rows = log_of(tmp_path / precision)
        assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
        weights = load_file(tmp_path / precision / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_float16_gradients_that_overflow_leave_out_their_step(data, tmp_path, monkeypatch):
    loss, scales, weights = training_loop.training_loss, [], []

    def huge(model, batch, smoothing):
        return loss(model, batch, smoothing) * (1e8 if len(scales) == 0 else 1.0)

    make_step = Training.make_step

    def watched(self):
        before = [p.detach().clone() for p in self.trained]
        make_step(self)
        same = all(torch.equal(a, b) for a, b in zip(before, self.trained, strict=True))
        weights.append(same)
        scales.append(self.scaler.get_scale())

    monkeypatch.setattr(training_loop, "training_loss", huge)
    monkeypatch.setattr(Training, "make_step", watched)
    make(data, tmp_path / "m", precision="float16", steps=2)
    assert weights == [True, False]
    assert scales == [2.0**15, 2.0**15]
