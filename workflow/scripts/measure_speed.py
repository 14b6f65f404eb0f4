"""Measure what makes editing quick, each technique against the straightforward computation.

    python workflow/scripts/measure_speed.py --output results/speed/speed.json

Straightforward is what the released code does: at every gradient step the whole model, a lookup
among all keys and Adam over all values; one edit at a time; every evaluation from scratch, one
example at a time. Both sides of a ratio are measured in one process, in turns. Models have real
sizes and random weights; how long an edit takes depends on sizes and on the number of gradient
steps alone. How soon random weights are fitted says nothing of trained ones, so "with early stop"
takes as many steps as the development streams' trained models took (docs/early-stop.md).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

from grace_bench import provenance
from grace_bench.codebook import IGNORED, Codebook, KeyInfo, Label
from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch, Editor
from grace_bench.evaluation import Evaluator, predict_all
from grace_bench.metrics import MEASURES
from grace_bench.models.layers import find_layer, layer_dims
from grace_bench.records import write_json
from grace_bench.tasks.base import Prediction, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("measure_speed")

EARLY = {"facts-qa": 4, "facts-topics": 2, "facts-passages": 100}
"""Gradient steps an edit, of 100, with the early stop of config/editors: docs/early-stop.md."""

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


def subjects(tiny: bool) -> list[Subject]:
    """Return the three models; `tiny` ones make the script itself quick to test."""

    def t5() -> nn.Module:
        small = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 5, "num_heads": 4}
        real = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=200 if tiny else 32128,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                decoder_start_token_id=0,
                **(small if tiny else real),
            )
        )

    def bert() -> nn.Module:
        small = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
        return BertForSequenceClassification(
            BertConfig(num_labels=11, num_hidden_layers=12, **(small if tiny else {}))
        )

    def gpt2() -> nn.Module:
        small = {"n_embd": 32, "n_head": 4, "vocab_size": 200}
        return GPT2LMHeadModel(GPT2Config(n_layer=12, **(small if tiny else {})))

    scale = 8 if tiny else 1
    return [
        Subject(
            "T5-small",
            t5,
            "encoder.block.4.layer.1.DenseReluDense.wo",
            12,
            5,
            30,
            EARLY["facts-qa"],
        ),
        Subject(
            "BERT-base",
            bert,
            "bert.encoder.layer.10.output.dense",
            512 // scale,
            0,
            1,
            EARLY["facts-topics"],
        ),
        Subject(
            "GPT-2 small",
            gpt2,
            "transformer.h.9.mlp.c_fc",
            100 // scale,
            32 // scale,
            3,
            EARLY["facts-passages"],
        ),
    ]


class RandomTokens(Task):
    """Examples whose text is a number: of the random tokens that the model is given."""

    name = "random_tokens"
    main_measure = "accuracy"

    def __init__(self, subject: Subject, model: nn.Module) -> None:
        self.subject = subject
        self.vocabulary = model.config.vocab_size
        self.causal = subject.name.startswith("GPT")

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


def grace_on(
    subject: Subject, engine: str, steps: int, n_keys: int, **more: Any
) -> tuple[Editor, Task]:
    """Return an editor with `n_keys` keys on a fresh model."""
    torch.manual_seed(0)
    model = subject.build().eval()
    settings = {"steps": steps, "radius": 1e-3, **more}
    editor = create_editor("grace", model, subject.layer, settings, 0, engine)
    if n_keys:
        fill(editor, n_keys)
    return editor, RandomTokens(subject, model)


def warm_up(editor: Editor, task: Task) -> None:
    """Make a short edit: a run's first one checks the replay, and makes room in the codebook."""
    usual = editor.hyperparameters
    editor.hyperparameters = usual.model_copy(update={"steps": 3})
    editor.edit(EditBatch(task.encode(examples_from(900, 1)), ("first",), "", 1_000_000))
    editor.hyperparameters = usual


def measure_edits(subject: Subject, steps: int, n_keys: int, rounds: int) -> dict[str, float]:
    """Return seconds an edit: straightforward, with each engine, and in batches."""
    found: dict[str, list[float]] = {}
    editors = {engine: grace_on(subject, engine, steps, n_keys) for engine in ("replay", "lean")}
    torch.manual_seed(0)
    model = subject.build().eval()
    dims = layer_dims(find_layer(model, subject.layer))
    keys, values = torch.randn(n_keys, dims.d_in), torch.rand(n_keys, dims.d_out)
    task = RandomTokens(subject, model)
    for editor, _ in editors.values():
        warm_up(editor, task)
    for number in range(rounds):
        [example] = examples_from(1000 + number, 1)
        inputs = task.encode([example])
        direct = seconds(
            lambda inputs=inputs: straightforward_edit(
                model, subject.layer, inputs, keys, values, steps
            )
        )
        found.setdefault("straightforward", []).append(direct)
        for engine, (editor, _) in editors.items():
            batch = EditBatch(inputs, (str(number),), "", step=1 + number)
            took = seconds(lambda editor=editor, batch=batch: editor.edit(batch))
            found.setdefault(engine, []).append(took)
        if subject.edits_at_once > 1:
            took = seconds(lambda number=number: edit_batch(editors["lean"], subject, number))
            found.setdefault("batch", []).append(took / subject.edits_at_once)
    return {name: min(times) for name, times in found.items()}


def edit_batch(owner: tuple[Editor, Task], subject: Subject, number: int) -> None:
    """Prepare a batch of edits and make them one by one."""
    editor, task = owner
    rows = examples_from(2000 + 100 * number, subject.edits_at_once)
    steps = [10_000 + 100 * number + i for i in range(len(rows))]
    editor.prepare(task.encode(rows), steps)
    for row, step in zip(rows, steps, strict=True):
        editor.edit(EditBatch(task.encode([row]), (row["example_id"],), "", step))


def measure_lean(subject: Subject, steps: int, n_keys: int) -> float:
    """Return seconds an edit as it is made by default, at `n_keys` keys."""
    owner = grace_on(subject, "lean", steps, n_keys)
    warm_up(*owner)
    return seconds(lambda: edit_batch(owner, subject, 0)) / subject.edits_at_once


def measure_weight_evaluation(subject: Subject, count: int) -> dict[str, float]:
    """Return seconds an example of a finetuned model: one by one, in batches, and kept."""
    torch.manual_seed(0)
    model = subject.build().eval()
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
    torch.manual_seed(0)
    unedited = subject.build().eval()
    editor, task = grace_on(subject, "lean", 1, n_keys)
    inputs = task.encode(examples_from(0, 32))
    times: dict[str, list[float]] = {"unedited": [], "edited": []}
    with torch.no_grad():
        for _ in range(rounds + 1):
            for name, model in (("unedited", unedited), ("edited", editor.model)):
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
    editor, task = grace_on(subject, "lean", steps, 0)
    evaluator = Evaluator(editor, task, batch_size=64)
    kept, stream = examples_from(0, upstream), examples_from(50_000, edits)
    blank = {**dict.fromkeys(MEASURES), "accuracy": 0.0, "prediction": ""}
    tracking = seconds(lambda: evaluator.learn([*kept, *stream], [blank] * (upstream + edits)))
    editing = evaluating = 0.0
    for step, example in enumerate(stream, start=1):
        batch = EditBatch(task.encode([example]), (example["example_id"],), "", step)
        editing += seconds(lambda batch=batch: editor.edit(batch))
        some = [*kept, *stream[:step]]
        evaluating += seconds(lambda some=some: evaluator.predict(some))
    count = max(1, min(32, upstream // 8))
    one_by_one = seconds(lambda: predict_all(editor.model, task, kept[:count], 1)) / count
    full = one_by_one * sum(upstream + step for step in range(1, edits + 1))
    return {
        "editing": editing,
        "tracking": tracking,
        "incremental": evaluating,
        "one by one (extrapolated)": full,
    }


def measure_all(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one record a measurement."""
    by_name = {subject.name: subject for subject in subjects(args.tiny)}
    most = max(args.keys)
    for subject in by_name.values():
        name, steps, few = subject.name, args.steps, args.steps_with_keys
        for n_keys in (0, *(n for n in args.keys if n)):
            taken = few if n_keys else steps
            found = measure_edits(subject, taken, n_keys, args.rounds)
            yield {"what": "edit", "model": name, "keys": n_keys, "steps": taken, **found}
        found = {
            "none": measure_lean(subject, steps, 0),
            "many": measure_lean(subject, steps, most),
        }
        yield {"what": "many keys", "model": name, "keys": most, "steps": steps, **found}
        early = max(1, round(steps * subject.early / 100))
        took = measure_lean(subject, early, 0)
        yield {"what": "early stop", "model": name, "steps": early, "seconds": took}
    for name, count in (("T5-small", args.upstream // 4), ("BERT-base", args.upstream // 16)):
        found = measure_weight_evaluation(by_name[name], max(2, count))
        yield {"what": "weight evaluation", "model": name, "examples": count, **found}
    t5 = by_name["T5-small"]
    yield {"what": "forward", "model": t5.name, "keys": most, **measure_lookup(t5, most, 9)}
    yield {"what": "memory", "keys": most, **measure_memory(most)}
    found = measure_evaluation(t5, args.upstream, args.edits, args.steps)
    yield {"what": "evaluation", "model": t5.name, "upstream": args.upstream, **found}


def main() -> None:
    """Measure, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
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
        write_json(args.output, measured)  # what is measured stays, whatever comes


if __name__ == "__main__":
    main()
