"""`rules: released` does, edit by edit, what the released code did on two small models.

Decisions are compared exactly, keys and radii to 1e-5, losses of freshly made keys to 1e-3.

The traces were made on another processor: even the unedited models' activations differ from theirs
by 1e-6 where this was written, and Adam at learning rate 1 amplifies that. So
- where a loss is further off, a test shows that noise in the last bit of the weights moves the
  same loss of the same edit as far;
- values are compared bit for bit with those of `PlainGrace`, which takes the gradient steps in the
  released order of operations on the processor at hand;
- trained values, and weights but for those of `tolerances`, are printed and not asserted.
TRR is not compared, as the traces don't carry its inputs.

By default only the last edit of the crafted traces and the first ones of the others are trained;
GRACE's others, whose decisions don't depend on it, take the trace's trained values.
GRACE_BENCH_FULL=1 trains all.
The largest deviation of each quantity in each trace is printed when the tests have ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch, Editor, EditResult
from grace_bench.editors.hyperparameters import EditorHyperparameters
from grace_bench.editors.methods.grace.editor import GraceEditor
from grace_bench.editors.methods.grace.hyperparameters import GraceHyperparameters
from grace_bench.metrics import f1_released, perplexity
from grace_bench.models.architecture import find_layer, layer_name, replace_layer
from grace_bench.registry import EDITORS
from grace_bench.replay.steps import StepReplay

pytestmark = pytest.mark.slow

SHARED = os.environ.get("GRACE_BENCH_SHARED")
REFERENCE = Path(SHARED) / "reference" if SHARED else None
TRACES = sorted((REFERENCE / "traces").glob("*.npz")) if REFERENCE else []
FULL = bool(os.environ.get("GRACE_BENCH_FULL"))
TRAINED = {"grace": 3, "ft_ewc": 5, "ft_retrain": 4, "ft": 2}
"""Edits trained by default; 1 for other editors."""

CLASSES = {"t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM}
BRANCHES = {"add_far": "add", "no_expand": "reuse"}
"""Names the traces have for what we call otherwise."""

GRACE_SETTINGS = {
    "edit_lr": "learning_rate", "n_iter": "steps", "eps": "radius", "val_init": "value_init",
}  # fmt: skip
GRACE_EXPANSIONS = {"coverage": "to_distance", "moving_average": "moving_average"}
SETTINGS = {
    "edit_lr": "learning_rate",
    "n_iter": "steps",
    "ewc_lambda": "ewc_lambda",
    "fisher_mem": "memory",
    "retrain_frequency": "retrain_every",
    "threshold": "threshold",
    "nkeys": "size",
}


class Trace:
    """One .npz file."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.name = path.stem
        self.meta = json.loads(str(self.arrays.pop("meta")))
        self.records: list[dict[str, Any]] = self.meta["records"]
        self.arch: str = self.meta["arch"]
        self.layer: str = self.meta["config"]["model"]["inner_params"][0]

    def array(self, index: int, name: str) -> np.ndarray:
        """Return an array of edit `index`."""
        return self.arrays[f"e{index:03d}/{name}"]

    def has(self, index: int, name: str) -> bool:
        """Say whether edit `index` has an array."""
        return f"e{index:03d}/{name}" in self.arrays

    def inputs(self, index: int) -> dict[str, Tensor]:
        """Return what was fed in edit `index`."""
        names = ("input_ids", "attention_mask", "labels")
        return {name: torch.tensor(self.array(index, f"tok_{name}")) for name in names}

    def model(self) -> nn.Module:
        """Load the model the trace was made on."""
        return CLASSES[self.arch].from_pretrained(REFERENCE / "models" / self.arch).eval()

    def editor(self, model: nn.Module) -> Editor:
        """Return our editor in the released config, with the initial weights of the trace."""
        name, hyperparameters = self.meta["editor"], self.hyperparameters()
        if name == "grace":
            layer = layer_name(self.layer)
            return ReplayedGrace(model, layer, hyperparameters, torch.Generator())
        editor = create_editor(name, model, self.layer, hyperparameters)
        initial = {
            our_name(k[5:]): torch.tensor(v)
            for k, v in self.arrays.items()
            if k.startswith("init/")
        }
        if initial:  # of Defer and Memory
            editor.load_state_dict({**initial, "edited": torch.tensor(False)})
        return editor

    def hyperparameters(self) -> EditorHyperparameters:
        """Translate the released config."""
        theirs, name = self.meta["config"]["editor"], self.meta["editor"]
        if name == "grace":
            given = {ours: theirs[key] for key, ours in GRACE_SETTINGS.items() if key in theirs}
            if "replacement" in theirs:
                given["replacement"] = theirs["replacement"].removeprefix("replace_")
            if "eps_expand" in theirs:  # an unknown rule does nothing there
                given["expand"] = GRACE_EXPANSIONS.get(theirs["eps_expand"], "none")
            ours = GraceHyperparameters(rules="released", **given)
            explicit = "explicit" in self.name
            position = self.records[0]["key_id"] if explicit else ours.query_position
            return GraceHyperparameters(**{**ours.model_dump(), "query_position": position})
        given = {ours: theirs[key] for key, ours in SETTINGS.items() if key in theirs}
        given.setdefault("steps", self.meta["config"]["n_iter"])
        return EDITORS.get(name).hyperparameters_class()(rules="released", **given)


class ReplayedGrace(GraceEditor):
    """GRACE that takes the trace's initial values instead of drawing them."""

    next_value: Tensor

    def draw_value(self, step: int = 0) -> Tensor:
        """Return the value the released code drew."""
        return self.next_value


@dataclass
class Outcome:
    """Largest deviation of each quantity, and every decision that differs."""

    name: str
    deviations: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def compare(self, what: str, ours: Any, theirs: Any) -> None:
        """Note the largest absolute deviation."""
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        if ours.shape != theirs.shape:
            self.wrong.append(f"{what}: shape {ours.shape}, not {theirs.shape}")
            return
        deviation = float(np.abs(ours - theirs).max()) if ours.size else 0.0
        self.deviations[what] = max(self.deviations.get(what, 0.0), deviation)

    def decide(self, what: str, ours: Any, theirs: Any) -> None:
        """Note a decision that is not the same."""
        self.deviations.setdefault("decisions", 0.0)
        if ours != theirs:
            self.deviations["decisions"] += 1
            self.wrong.append(f"{what}: {ours}, not {theirs}")


def replay(path: Path) -> Outcome:
    """Make the edits of a trace and compare what can be compared after each."""
    trace, outcome = Trace(path), Outcome(path.stem)
    model = trace.model()
    editor = trace.editor(model)
    hyperparameters = editor.hyperparameters
    score = scorer(trace.arch, model)
    for index, record in enumerate(trace.records):
        trained = trains(trace, index)
        if not trained and not isinstance(editor, GraceEditor):
            return outcome
        inputs = trace.inputs(index)
        if isinstance(editor, ReplayedGrace):
            editor.next_value = torch.tensor(trace.array(index, "rng_value")[0])
            update = {} if trained else {"steps": 0}
            editor.hyperparameters = hyperparameters.model_copy(update=update)
        result = editor.edit(EditBatch(inputs, (f"example-{index}",), step=index + 1))
        after_edit(trace, outcome, editor, result, index, trained)
        with torch.no_grad():
            argmax = model(**inputs).logits.argmax(-1).numpy()
        differ = argmax != trace.array(index, "post_argmax")
        outcome.compare("post_argmax", differ.mean(), 0.0)
        outcome.compare("ES", score(inputs), record["ES"])
        if trace.has(index, "ERR_each"):
            each = [score(trace.inputs(past)) for past in range(index + 1)]
            outcome.compare("ERR", each, trace.array(index, "ERR_each"))
    finish(trace, outcome, editor)
    editor.remove()
    return outcome


def trains(trace: Trace, index: int) -> bool:
    """Say whether an edit is trained here, or takes the trace's values."""
    if FULL:
        return True
    if trace.name.startswith("crafted"):
        return index == len(trace.records) - 1  # the edits before it recur in other traces
    return index < TRAINED.get(trace.meta["editor"], 1)


def after_edit(
    trace: Trace, outcome: Outcome, editor: Editor, result: EditResult, index: int, trained: bool
) -> None:
    """Compare what the edit did; put the trace's values in where nothing was trained."""
    record, losses = trace.records[index], trace.array(index, "losses")
    if trained:
        outcome.decide(f"e{index} gradient steps", len(result.losses), record["n_iter_run"])
        if len(losses):
            outcome.compare(
                "first loss" if index == 0 else "first losses", result.losses[0], losses[0]
            )
    if isinstance(editor, GraceEditor):
        branch = BRANCHES.get(record["branch"], record["branch"])
        fires = record["fires"][0]
        nearest = None if record["nearest"] == -1 else record["nearest"]
        book, before = editor.codebook, f"e{index}"
        outcome.decide(f"{before} branch", result.branch, branch)
        outcome.decide(f"{before} nearest", result.nearest_key, nearest)
        outcome.decide(f"{before} key", result.key, record["chosen_key"][0] if fires else None)
        outcome.decide(f"{before} number of keys", len(book), record["nkeys"])
        outcome.compare("keys", book.keys, trace.array(index, "keys"))
        outcome.compare("radii", book.radii, trace.array(index, "epsilons").reshape(-1))
        values = torch.tensor(trace.array(index, "values"))
        if not trained:
            for key, value in enumerate(values):
                book.set_value(key, value)
        outcome.compare("values", book.values, values)
        means = [info.label.mean for info in book.info]
        outcome.compare("label means", means, record["key_label_means"])
        if nearest is not None:
            outcome.compare("distance", result.distance, record["dist"])
        if trained and branch in ("first", "add", "split"):
            sensitive = (trace.name, index) in SENSITIVE
            what = "losses (fresh, sensitive to rounding)" if sensitive else "losses (fresh)"
            outcome.compare(what, result.losses, losses)
        elif trained:
            outcome.compare("losses (reused)", result.losses, losses)
        return
    outcome.compare("losses", result.losses, losses)
    if "w_l2" in record:
        weight = editor.state_dict()["weight"].double()
        before_all = torch.tensor(trace.arrays["weight_before"]).double()
        outcome.compare("weight norm", weight.norm(), record["w_l2"])
        if index == 0:
            outcome.compare("change norm", (weight - before_all).norm(), record["w_delta_l2"])
    for key, value in record.items():
        if key.startswith("l2/"):
            outcome.compare("weight norm", editor.state_dict()[our_name(key[3:])].norm(), value)


def our_name(theirs: str) -> str:
    """Translate a name of the released Defer's or Memory's parameters."""
    return theirs.replace("defer.", "gate.").replace("fc.", "attention.")


def finish(trace: Trace, outcome: Outcome, editor: Editor) -> None:
    """Compare the weights at the end."""
    state: Mapping[str, Tensor] = editor.state_dict()
    for name, theirs in trace.arrays.items():
        if name.startswith("final/"):
            outcome.compare("final weights", state[our_name(name[6:])], theirs)
    if "weight_after" in trace.arrays:
        outcome.compare("final weights", state["weight"], trace.arrays["weight_after"])


def scorer(arch: str, model: nn.Module) -> Callable[[Mapping[str, Tensor]], float]:
    """Return the measure of the released code: F1 of generated ids, or perplexity."""

    @torch.no_grad()
    def f1(inputs: Mapping[str, Tensor]) -> float:
        generated = model.generate(inputs["input_ids"], max_length=20)[0]
        labels = inputs["labels"][0]
        return f1_released(generated[generated != 0].tolist(), labels[labels != -100].tolist())

    @torch.no_grad()
    def ppl(inputs: Mapping[str, Tensor]) -> float:
        return perplexity(model(**inputs).loss.item())

    return f1 if arch == "t5" else ppl


CHAOTIC = ("seq_ft_gpt2", "seq_memory_gpt2")
"""100 steps on a whole matrix without a stop. The first losses agree to 1e-6, later ones drift,
and argmax and scores with them, as far as noise in the last bit moves them (a test)."""

SENSITIVE = {("seq_ft_gpt2", 0), ("seq_memory_gpt2", 0), ("seq_grace_t5", 26)}
"""Edits with a loss further off than 1e-3 that starts from nothing trained before."""


def tolerances(name: str) -> dict[str, float]:
    limits = {
        "decisions": 0,
        "keys": 1e-5,
        "radii": 1e-5,
        "distance": 1e-5,
        "label means": 0,
        "first loss": 1e-5,
        "losses (fresh)": 1e-3,
        "post_argmax": 0,
        "change norm": 1e-3,
        "ES": 1e-4,
        "ERR": 1e-4,
    }
    if name in ("seq_ft_t5", "seq_ft_ewc_t5"):
        limits |= {"losses": 1e-2, "weight norm": 1e-2, "final weights": 1e-2}
    if name in CHAOTIC:
        limits |= {"post_argmax": 0.25, "ES": 0.2, "ERR": 1.0}
    return limits


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not TRACES, reason="GRACE_BENCH_SHARED names no folder with reference/traces")
def test_there_are_traces_of_every_released_editor():
    editors = {json.loads(str(np.load(p)["meta"]))["editor"] for p in TRACES}
    assert editors == {"grace", "ft", "ft_ewc", "ft_retrain", "defer", "memory"}


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_released_rules_reproduce_the_trace(path, record_property):
    outcome = replay(path)
    listed = ", ".join(f"{what} {deviation:.1e}" for what, deviation in outcome.deviations.items())
    record_property("deviations", f"{outcome.name}: {listed}")  # conftest.py prints them
    assert outcome.wrong == []
    limits = tolerances(outcome.name)
    too_far = {
        what: deviation
        for what, deviation in outcome.deviations.items()
        if deviation > limits.get(what, np.inf)
    }
    assert too_far == {}


@pytest.mark.parametrize(("name", "index"), sorted(SENSITIVE))
@pytest.mark.skipif(not TRACES, reason="GRACE_BENCH_SHARED names no folder with reference/traces")
def test_drift_from_the_trace_is_no_more_than_rounding_makes(name, index):
    trace = Trace(REFERENCE / "traces" / f"{name}.npz")
    ours = losses_alone(trace, index)
    moved = [losses_alone(trace, index, noise=1e-7, seed=seed) for seed in range(3)]
    by_rounding = max(np.abs(ours - other).max() for other in moved)
    assert by_rounding > 0
    assert np.abs(ours - trace.array(index, "losses")).max() <= 10 * by_rounding


def losses_alone(trace: Trace, index: int, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Make one edit on an unedited model, whose weights are moved by relative `noise`."""
    model = trace.model()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + noise * torch.randn(parameter.shape, generator=generator))
    editor = trace.editor(model)
    if isinstance(editor, ReplayedGrace):
        editor.next_value = torch.tensor(trace.array(index, "rng_value")[0])
    return np.asarray(editor.edit(EditBatch(trace.inputs(index), ("alone",), step=1)).losses)


class PlainGrace(nn.Module):
    """The released order of operations, with the trace's keys and radii.

    One parameter holds all values; every call looks the query up and writes the value over
    positions of the layer's output; the optimiser is over all of the model.
    """

    def __init__(self, layer: nn.Module, replacement: str) -> None:
        super().__init__()
        self.layer, self.replacement = layer, replacement
        self.keys = self.radii = self.values = None
        self.position = -1

    @property
    def weight(self) -> Tensor:
        """T5 asks for it."""
        return self.layer.weight

    def forward(self, hidden: Tensor) -> Tensor:
        output = self.layer(hidden)
        position = min(self.position, hidden.shape[1] - 1)
        query = hidden[:, position, :].detach()
        distances, nearest = torch.cdist(self.keys, query).min(0)
        value = self.values[nearest]
        fires = distances <= self.radii[nearest]
        if self.replacement == "replace_all":
            everywhere = value.unsqueeze(1).repeat_interleave(output.shape[1], dim=1)
            return torch.where(fires.view(-1, 1, 1), everywhere, output)
        where = slice(None, position) if self.replacement == "replace_prompt" else position
        output[:, where] = torch.where(fires.unsqueeze(-1), value, output[:, where])
        return output

    def edit(self, model: nn.Module, inputs: Mapping[str, Tensor], steps: int) -> list[float]:
        """Train all values as released; return the losses."""
        model.requires_grad_(False)
        self.values.requires_grad_(True)
        losses = []
        for step in range(steps):
            loss = model(**inputs).loss
            if step == 0:
                optimizer = torch.optim.Adam(model.parameters(), 1.0)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return losses


GRACE_TRACES = [path for path in TRACES if "grace" in path.stem or "crafted" in path.stem]


@pytest.mark.parametrize("path", GRACE_TRACES, ids=lambda path: path.stem)
def test_direct_values_are_those_of_the_released_order_of_operations_bit_by_bit(path):
    trace = Trace(path)
    editor = trace.editor(trace.model())
    editor.replay = StepReplay(editor.model, "direct")
    model, settings = trace.model(), trace.meta["config"]["editor"]
    plain = PlainGrace(find_layer(model, trace.layer), settings["replacement"])
    replace_layer(model, layer_name(trace.layer), plain)
    values = torch.empty(0, editor.dims.d_out)
    for index, record in enumerate(trace.records[:3]):
        inputs = trace.inputs(index)
        start = editor.next_value = torch.tensor(trace.array(index, "rng_value")[0])
        if settings["val_init"] == "warm":
            start = editor.query_layer(inputs).outputs[0]
        result = editor.edit(EditBatch(inputs, ("example",), step=index + 1))
        book = editor.codebook
        if len(book) > len(values):
            values = torch.cat([values, start[None]])
        plain.keys, plain.radii, plain.position = book.keys, book.radii, record["key_id"]
        plain.values = nn.Parameter(values)
        losses = plain.edit(model, inputs, record["n_iter_run"])
        values = plain.values.detach()
        assert losses == result.losses
        assert torch.equal(values, book.values)
