"""Replays a reference trace of the released code in our editors and measures the deviations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from grace_bench.editors import EDITORS, create_editor
from grace_bench.editors.base import EditBatch, Editor, EditResult
from grace_bench.editors.grace import GraceEditor
from grace_bench.editors.hyperparameters import EditorHyperparameters, GraceHyperparameters
from grace_bench.metrics import f1_released, perplexity

CLASSES = {"t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM}
BRANCHES = {"add_far": "add", "no_expand": "reuse"}
"""Names the traces have for what we call otherwise."""

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

    def hyperparameters(self) -> EditorHyperparameters:
        """Translate the released config."""
        theirs, name = self.meta["config"]["editor"], self.meta["editor"]
        if name == "grace":
            ours = GraceHyperparameters.from_released(theirs)
            explicit = "explicit" in self.name
            position = self.records[0]["key_id"] if explicit else ours.query_position
            return GraceHyperparameters(**{**ours.model_dump(), "query_position": position})
        given = {ours: theirs[key] for key, ours in SETTINGS.items() if key in theirs}
        given.setdefault("steps", self.meta["config"]["n_iter"])
        return EDITORS.get(name).hyperparameters_class()(rules="released", **given)


class ReplayedGrace(GraceEditor):
    """GRACE that takes the trace's initial values instead of drawing them."""

    next_value: Tensor

    def draw_value(self) -> Tensor:
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


def replay(path: Path, models: Path) -> Outcome:
    """Make all edits of a trace and compare what can be compared after each."""
    trace, outcome = Trace(path), Outcome(path.stem)
    arch, layer = trace.meta["arch"], trace.meta["config"]["model"]["inner_params"][0]
    model = CLASSES[arch].from_pretrained(models / arch).eval()
    hyperparameters = trace.hyperparameters()
    if trace.meta["editor"] == "grace":
        name = layer.removesuffix(".weight").replace("[", ".").replace("]", "")
        editor: Editor = ReplayedGrace(model, name, hyperparameters, torch.Generator())
    else:
        editor = create_editor(trace.meta["editor"], model, layer, hyperparameters)
    start(trace, editor)
    for index, record in enumerate(trace.records):
        inputs = trace.inputs(index)
        if isinstance(editor, ReplayedGrace):
            editor.next_value = torch.tensor(trace.array(index, "rng_value")[0])
        result = editor.edit(EditBatch(inputs, (f"example-{index}",), step=index + 1))
        after_edit(trace, outcome, editor, result, index)
        score = scorer(arch, model)
        with torch.no_grad():
            argmax = model(**inputs).logits.argmax(-1).tolist()
        outcome.decide(f"e{index} post_argmax", argmax, trace.array(index, "post_argmax").tolist())
        outcome.compare("ES", score(inputs), record["ES"])
        if trace.has(index, "ERR_each"):
            each = [score(trace.inputs(past)) for past in range(index + 1)]
            outcome.compare("ERR", each, trace.array(index, "ERR_each"))
    finish(trace, outcome, editor)
    editor.remove()
    return outcome


def start(trace: Trace, editor: Editor) -> None:
    """Give Defer and Memory the trace's initial weights."""
    weights = {k[5:]: torch.tensor(v) for k, v in trace.arrays.items() if k.startswith("init/")}
    if weights:
        editor.load_state_dict({**weights, "edited": torch.tensor(False)})


def after_edit(
    trace: Trace, outcome: Outcome, editor: Editor, result: EditResult, index: int
) -> None:
    """Compare what the edit did."""
    record, losses = trace.records[index], trace.array(index, "losses")
    outcome.decide(f"e{index} gradient steps", len(result.losses), record["n_iter_run"])
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
        outcome.compare("values", book.values, trace.array(index, "values"))
        means = [info.label.mean for info in book.info]
        outcome.compare("label means", means, record["key_label_means"])
        if nearest is not None:
            outcome.compare("distance", result.distance, record["dist"])
        fresh = branch in ("first", "add", "split")
        outcome.compare("losses (fresh)" if fresh else "losses (reused)", result.losses, losses)
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
            outcome.compare("weight norm", editor.state_dict()[key[3:]].norm(), value)


def finish(trace: Trace, outcome: Outcome, editor: Editor) -> None:
    """Compare the weights at the end."""
    state: Mapping[str, Tensor] = editor.state_dict()
    for name, theirs in trace.arrays.items():
        if name.startswith("final/"):
            outcome.compare("final weights", state[name[6:]], theirs)
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
