"""Measure what makes editing quick, each technique against the straightforward computation.

    python workflow/scripts/measure_speed.py --output results/speed/speed.json
    python workflow/scripts/measure_speed.py --models GPT2-XL --steps 5 --keys 0 --output xl.json

Straightforward is what the released code does: at every gradient step the whole model, a lookup
among all keys and Adam over all values; one edit at a time; every evaluation from scratch, one
example at a time. Both sides of a ratio are measured in one process, in turns. Models have real
sizes and random weights; how long an edit takes depends on sizes and on the number of gradient
steps alone. How soon random weights are fitted says nothing of trained ones, so "with early stop"
takes as many steps as the development streams' trained models took (docs/results/early-stop.md).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from grace_bench.codebook.codebook import Codebook
from grace_bench.codebook.keys import IGNORED, KeyInfo, Label
from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch, Editor
from grace_bench.editors.training import is_causal
from grace_bench.metrics import MEASURES
from grace_bench.models.architecture import find_layer, layer_dims
from grace_bench.run.evaluation import Evaluator, predict_all
from grace_bench.store import provenance
from grace_bench.store.files import write_json
from grace_bench.tasks.base import Prediction, Task

logger = logging.getLogger("measure_speed")

FAR = 100.0
"""Scale of the keys that fill a codebook: no query comes near them."""


@dataclass(frozen=True)
class Subject:
    """A model of one size, the layer to edit, and the lengths of its inputs.

    Args:
        name: of the model.
        build: makes it, with random weights.
        layer: that is edited.
        prompt: tokens of the prompt.
        answer: tokens of the label; 0: a class.
        edits_at_once: what `edits_at_once: auto` makes of these lengths.
        early: of 100 gradient steps, so many were taken with an early stop that lowered no ERR.
    """

    name: str
    build: Callable[[], nn.Module]
    layer: str
    prompt: int
    answer: int
    edits_at_once: int
    early: int


def t5(**shape: Any) -> nn.Module:
    """Build T5-small v1.1, or another shape of it."""
    real = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
    form = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return T5ForConditionalGeneration(
        T5Config(**{"vocab_size": 32128, "decoder_start_token_id": 0, **form, **real, **shape})
    )


def bert(**shape: Any) -> nn.Module:
    """Build BERT-base with eleven classes, or another shape of it."""
    return BertForSequenceClassification(BertConfig(num_labels=11, **shape))


def gpt2(**shape: Any) -> nn.Module:
    """Build GPT-2 small, or another shape of it."""
    return GPT2LMHeadModel(GPT2Config(**shape))


SUBJECTS = [
    Subject("T5-small", t5, "encoder.block.4.layer.1.DenseReluDense.wo", 12, 5, 30, 4),
    Subject("BERT-base", bert, "bert.encoder.layer.10.output.dense", 512, 0, 1, 2),
    Subject("GPT-2 small", gpt2, "transformer.h.9.mlp.c_fc", 100, 32, 3, 100),
    Subject(
        "GPT2-XL",
        partial(gpt2, n_embd=1600, n_layer=48, n_head=25),
        *("transformer.h.35.mlp.c_fc", 100, 32, 3, 100),
    ),
]
"""At the paper's layers; `early` of the models of docs/results/early-stop.md."""

TINY = {
    "T5-small": {"vocab_size": 200, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 5},
    "BERT-base": {"hidden_size": 24, "intermediate_size": 48},
    "GPT-2 small": {"n_embd": 24, "vocab_size": 200},
    "GPT2-XL": {"n_embd": 25, "vocab_size": 200},
}


def subjects(names: Sequence[str], tiny: bool) -> list[Subject]:
    """Return the named models; `tiny` ones make the script itself quick to test."""
    chosen = [subject for subject in SUBJECTS if subject.name in names]
    if not tiny:
        return chosen
    return [
        replace(
            subject,
            build=partial(subject.build, **TINY[subject.name]),
            prompt=subject.prompt if subject.prompt < 100 else subject.prompt // 8,
            answer=subject.answer if subject.answer < 8 else subject.answer // 8,
        )
        for subject in chosen
    ]


class RandomTokens(Task):
    """Examples whose text is a number: of the random tokens that the model is given."""

    name = "random_tokens"
    main_measure = "accuracy"

    def __init__(self, subject: Subject, model: nn.Module) -> None:
        self.subject = subject
        self.vocabulary = model.config.vocab_size
        self.causal = is_causal(model)

    def _ids(self, example: Any) -> tuple[list[int], list[int]]:
        generator = torch.Generator().manual_seed(int(example["text"]))
        subject = self.subject
        ids = torch.randint(
            3, self.vocabulary, (subject.prompt + subject.answer,), generator=generator
        )
        return ids[: subject.prompt].tolist(), ids[subject.prompt :].tolist()

    def encode(self, examples: Any) -> dict[str, Tensor]:
        """Return the model's arguments, (batch, length) each."""
        pairs = [self._ids(example) for example in examples]
        prompts = torch.tensor([prompt for prompt, _ in pairs])
        answers = torch.tensor([answer for _, answer in pairs])
        if self.subject.answer == 0:
            labels = torch.tensor([int(example["label"]) for example in examples])
            inputs = {"input_ids": prompts, "labels": labels}
        elif self.causal:
            ignored = torch.full_like(prompts, IGNORED)
            inputs = {
                "input_ids": torch.cat([prompts, answers], 1),
                "labels": torch.cat([ignored, answers], 1),
            }
        else:
            inputs = {"input_ids": prompts, "labels": answers}
        return {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}

    @torch.no_grad()
    def predict(self, model: nn.Module, examples: Any) -> list[Prediction]:
        """Return what teacher forcing gives; generation costs both sides the same again."""
        logits = model(**self.encode(examples)).logits
        return [
            Prediction(str(row.argmax(-1).tolist()), {"accuracy": 0.0, "loss": float(row.max())})
            for row in logits
        ]

    def is_error(self, prediction: Prediction) -> bool:
        """Random weights know nothing."""
        return True


def examples_from(start: int, count: int) -> list[dict[str, str]]:
    """Return examples of random tokens."""
    return [
        {"example_id": str(n), "fact_id": str(n), "text": str(n), "label": str(n % 11)}
        for n in range(start, start + count)
    ]


def fill(editor: Editor, n_keys: int) -> None:
    """Give a GRACE editor a codebook of `n_keys` keys that answer nothing."""
    dims = editor.dims
    generator = torch.Generator().manual_seed(1)
    keys = FAR * torch.randn(n_keys, dims.d_in, generator=generator)
    values = torch.rand(n_keys, dims.d_out, generator=generator)
    info = [KeyInfo(Label((), 0.0))] * n_keys
    editor.codebook = Codebook.of(keys, values, torch.ones(n_keys), info)


def straightforward_edit(
    model: nn.Module,
    layer: str,
    inputs: dict[str, Tensor],
    keys: Tensor,
    values: Tensor,
    steps: int,
) -> None:
    """Train as the released code does: whole model, whole codebook, a lookup at every step."""
    everything = nn.Parameter(torch.cat([values, values.new_zeros(1, values.shape[1])]))
    module = find_layer(model, layer)

    def answer(_module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        query = arguments[0][:, -1].detach()
        if len(keys):
            torch.cdist(keys, query).min(0)
        return everything[-1].expand_as(output)

    model.requires_grad_(False)
    handle = module.register_forward_hook(answer)
    optimizer = torch.optim.Adam([everything], lr=1.0)
    try:
        for _ in range(steps):
            optimizer.zero_grad()
            model(**inputs).loss.backward()
            optimizer.step()
    finally:
        handle.remove()


def seconds(work: Callable[[], Any]) -> float:
    """Return how long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fresh(subject: Subject) -> nn.Module:
    """Build a model, always with the same weights."""
    torch.manual_seed(0)
    return subject.build().eval()


@contextmanager
def grace_on(
    subject: Subject, model: nn.Module, engine: str, steps: int, n_keys: int
) -> Iterator[Editor]:
    """Let an editor with `n_keys` keys own a model while the block lasts."""
    settings = {"steps": steps, "radius": 1e-3}
    editor = create_editor("grace", model, subject.layer, settings, 0, engine)
    if n_keys:
        fill(editor, n_keys)
    try:
        yield editor
    finally:
        editor.remove()


def warm_up(editor: Editor, task: Task) -> None:
    """Make a short edit: a run's first one checks the replay, and makes room in the codebook."""
    usual = editor.hyperparameters
    editor.hyperparameters = usual.model_copy(update={"steps": 3})
    editor.edit(EditBatch(task.encode(examples_from(900, 1)), ("first",), "", 1_000_000))
    editor.hyperparameters = usual


def edits(editor: Editor, task: Task, count: int, number: int) -> None:
    """Make `count` edits, prepared in one batch if they are several."""
    rows = examples_from(2000 + 100 * number, count)
    steps = [10_000 + 100 * number + i for i in range(count)]
    if count > 1:
        editor.train_ahead(task.encode(rows), steps)
    for row, step in zip(rows, steps, strict=True):
        editor.edit(EditBatch(task.encode([row]), (row["example_id"],), "", step))


def measure_edits(subject: Subject, steps: int, n_keys: int, rounds: int) -> dict[str, float]:
    """Return seconds an edit: straightforward, with each engine, and in batches; best of rounds."""
    model, at_once = fresh(subject), subject.edits_at_once
    task = RandomTokens(subject, model)
    dims = layer_dims(find_layer(model, subject.layer))
    keys, values = torch.randn(n_keys, dims.d_in), torch.rand(n_keys, dims.d_out)
    inputs = task.encode(examples_from(1000, 1))

    def best(work: Callable[[int], Any]) -> float:
        return min(seconds(partial(work, number)) for number in range(rounds))

    found = {
        "straightforward": best(
            lambda _: straightforward_edit(model, subject.layer, inputs, keys, values, steps)
        )
    }
    for engine in ("replay", "lean"):
        with grace_on(subject, model, engine, steps, n_keys) as editor:
            warm_up(editor, task)
            found[engine] = best(partial(edits, editor, task, 1))
            if engine == "lean" and at_once > 1:
                batch = best(lambda number: edits(editor, task, at_once, rounds + number))
                found["batch"] = batch / at_once
    return found


def measure_default(subject: Subject, steps: int, n_keys: int) -> float:
    """Return seconds an edit as it is made by default, at `n_keys` keys."""
    model = fresh(subject)
    task = RandomTokens(subject, model)
    with grace_on(subject, model, "lean", steps, n_keys) as editor:
        warm_up(editor, task)
        return (
            seconds(lambda: edits(editor, task, subject.edits_at_once, 0)) / subject.edits_at_once
        )


def measure_weight_evaluation(subject: Subject, count: int) -> dict[str, float]:
    """Return seconds an example of a finetuned model: one by one, in batches, and kept."""
    model = fresh(subject)
    task = RandomTokens(subject, model)
    editor = create_editor("ft", model, subject.layer, {"steps": 1})
    examples = examples_from(0, count)
    evaluator = Evaluator(editor, task, batch_size=32)
    first = seconds(lambda: evaluator.predict(examples))
    editor.edit(EditBatch(task.encode(examples_from(9000, 1)), (), "", 1))
    evaluator.predict(examples)  # once, the first replayed batch is checked against a full one
    again = min(seconds(lambda: evaluator.predict(examples)) for _ in range(2))
    batches = seconds(lambda: predict_all(model, task, examples, 32))
    one_by_one = seconds(lambda: predict_all(model, task, examples, 1))
    times = {"one by one": one_by_one, "batches": batches, "first": first, "again": again}
    return {name: time / count for name, time in times.items()}


def measure_lookup(subject: Subject, n_keys: int, rounds: int) -> dict[str, float]:
    """Return seconds of a forward pass of 32 inputs: unedited, and with `n_keys` keys."""
    unedited, edited = fresh(subject), fresh(subject)
    inputs = RandomTokens(subject, edited).encode(examples_from(0, 32))
    times: dict[str, list[float]] = {"unedited": [], "edited": []}
    with grace_on(subject, edited, "lean", 1, n_keys), torch.no_grad():
        for _ in range(rounds + 1):
            for name, model in (("unedited", unedited), ("edited", edited)):
                times[name].append(seconds(lambda model=model: model(**inputs)))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def measure_memory(n_keys: int) -> dict[str, float]:
    """Return bytes that a codebook grown key by key holds, and those of its tensors alone."""
    codebook = Codebook(1024, 512)
    key, value, info = torch.randn(1024), torch.rand(512), KeyInfo(Label((), 0.0))
    for _ in range(n_keys):
        codebook.add(key, value, 1.0, info)
    return {"held": codebook.nbytes, "tensors": n_keys * 4 * (1024 + 512 + 1)}


def measure_evaluation(subject: Subject, upstream: int, edits: int, steps: int) -> dict[str, float]:
    """Return seconds of editing, and of exact evaluations after every edit, both ways."""
    model = fresh(subject)
    task = RandomTokens(subject, model)
    kept, stream = examples_from(0, upstream), examples_from(50_000, edits)
    blank = {**dict.fromkeys(MEASURES), "accuracy": 0.0, "prediction": ""}
    editing = evaluating = 0.0
    with grace_on(subject, model, "lean", steps, 0) as editor:
        evaluator = Evaluator(editor, task, batch_size=64)
        tracking = seconds(lambda: evaluator.learn([*kept, *stream], [blank] * (upstream + edits)))
        for step, example in enumerate(stream, start=1):
            batch = EditBatch(task.encode([example]), (example["example_id"],), "", step)
            editing += seconds(partial(editor.edit, batch))
            evaluating += seconds(partial(evaluator.predict, [*kept, *stream[:step]]))
        count = max(1, min(32, upstream // 8))
        one_by_one = seconds(lambda: predict_all(model, task, kept[:count], 1)) / count
    full = one_by_one * sum(upstream + step for step in range(1, edits + 1))
    return {
        "editing": editing,
        "tracking": tracking,
        "incremental": evaluating,
        "one by one (extrapolated)": full,
    }


def measure_all(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one record a measurement."""
    by_name = {subject.name: subject for subject in subjects(args.models, args.tiny)}
    most = max(args.keys)
    for name, subject in by_name.items():
        for n_keys in (0, *(n for n in args.keys if n)):
            taken = args.steps_with_keys if n_keys else args.steps
            found = measure_edits(subject, taken, n_keys, args.rounds)
            yield {"what": "edit", "model": name, "keys": n_keys, "steps": taken, **found}
        if most:
            sizes = {"none": 0, "many": most}
            found = {size: measure_default(subject, args.steps, n) for size, n in sizes.items()}
            yield {"what": "many keys", "model": name, "keys": most, "steps": args.steps, **found}
        early = max(1, round(args.steps * subject.early / 100))
        took = measure_default(subject, early, 0)
        yield {"what": "early stop", "model": name, "steps": early, "seconds": took}
    for name, count in (("T5-small", args.upstream // 4), ("BERT-base", args.upstream // 16)):
        if name in by_name:
            found = measure_weight_evaluation(by_name[name], max(2, count))
            yield {"what": "weight evaluation", "model": name, "examples": count, **found}
    if most:
        yield {"what": "memory", "keys": most, **measure_memory(most)}
    if t5_small := by_name.get("T5-small"):
        found = measure_lookup(t5_small, most, 9)
        yield {"what": "forward", "model": t5_small.name, "keys": most, **found}
        found = measure_evaluation(t5_small, args.upstream, args.edits, args.steps)
        record = {"what": "evaluation", "model": t5_small.name, "upstream": args.upstream}
        yield {**record, **found}


def main() -> None:
    """Measure, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    names = [subject.name for subject in SUBJECTS]
    parser.add_argument("--models", nargs="+", choices=names, default=names[:3])
    parser.add_argument("--keys", type=int, nargs="+", default=[0, 1000, 10_000, 100_000])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--steps-with-keys", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--upstream", type=int, default=1000)
    parser.add_argument("--edits", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="very small models, to try the script")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    measured = {"machine": provenance.describe(), "threads": 1, "records": []}
    for record in measure_all(args):
        logger.info("%s", record)
        measured["records"].append(record)
        measured["peak_memory_mib"] = provenance.peak_memory_mib()
        write_json(args.output, measured)  # what is measured stays, whatever comes


if __name__ == "__main__":
    main()
