"""Question answering and language modelling on tiny random models."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from grace_bench.errors import ConfigError, DataError
from grace_bench.suite.schema import DatasetConfig
from grace_bench.suite.section import validate
from grace_bench.tasks import create_task
from grace_bench.tasks.base import IGNORED, Prediction, Truncation
from grace_bench.tasks.kinds.question_answering import QuestionAnswering

QA = "question_answering"
PAIRS = [
    ("What is the capital of France?", "Paris"),
    ("Who?", "Nobody knows who wrote the play"),
    ("The river runs from the hills down to the sea. What is the capital?", "the sea"),
]


@pytest.fixture(params=["t5", "gpt2"])
def setting(request, tiny):
    return tiny(request.param, QA)


@pytest.fixture
def examples(example):
    return [example(text, label, f"e{i}") for i, (text, label) in enumerate(PAIRS)]


def test_a_causal_model_learns_the_answer_and_its_end_only(tiny, example):
    setting = tiny("gpt2", QA)
    tokenizer = setting.tokenizer
    batch = setting.task.encode([example(*PAIRS[0])])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    prompt = tokenizer(PAIRS[0][0])["input_ids"]
    answer = [*tokenizer(" Paris")["input_ids"], tokenizer.eos_token_id]
    assert batch["input_ids"].tolist() == [prompt + answer]
    assert batch["labels"].tolist() == [[IGNORED] * len(prompt) + answer]
    assert batch["attention_mask"].tolist() == [[1] * (len(prompt) + len(answer))]


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_answer(tiny, example):
    setting = tiny("t5", QA)
    tokenizer = setting.tokenizer
    batch = setting.task.encode([example(*PAIRS[0])])
    ids = batch["input_ids"][0].tolist()
    labels = batch["labels"][0].tolist()
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == PAIRS[0][0]
    assert tokenizer.decode(labels, skip_special_tokens=True).strip() == "Paris"
    assert ids[-1] == labels[-1] == tokenizer.eos_token_id
    assert labels.count(tokenizer.eos_token_id) == 1


def test_a_batch_is_padded_on_the_right_and_pads_are_masked(setting, examples):
    batch = setting.task.encode(examples)
    assert len({tuple(t.shape) for n, t in batch.items() if n != "labels"}) == 1
    assert batch["labels"].shape[0] == len(examples)
    for row, example in enumerate(examples):
        alone = setting.task.encode([example])
        for name, fill in (("input_ids", None), ("attention_mask", 0), ("labels", IGNORED)):
            width = alone[name].shape[1]
            assert torch.equal(batch[name][row, :width], alone[name][0])
            rest = batch[name][row, width:]
            assert fill is None or bool((rest == fill).all())


def test_the_loss_is_the_models_own(setting, example):
    one = example(*PAIRS[0])
    [scores] = setting.task.score_forced(setting.model, [one])
    with torch.no_grad():
        loss = setting.model(**setting.task.encode([one])).loss.item()
    assert scores["loss"] == pytest.approx(loss, abs=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_padding_changes_no_score(setting, examples):
    together = setting.task.predict(setting.model, examples)
    for example, found in zip(examples, together, strict=True):
        [alone] = setting.task.predict(setting.model, [example])
        assert found.text == alone.text
        assert found.scores == pytest.approx(alone.scores, abs=1e-5)


class Oracle(torch.nn.Module):
    """Says fixed token ids, whatever it is asked; forced or generating alike."""

    def __init__(self, says: list[int], size: int) -> None:
        super().__init__()
        self.says, self.size = says, size
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask, labels):
        logits = torch.zeros(*labels.shape, self.size)
        for position, token in enumerate(self.says[: labels.shape[1]]):
            logits[:, position, token] = 100.0
        return SimpleNamespace(logits=logits)

    def generate(self, input_ids, max_new_tokens, **_):
        start = torch.zeros(len(input_ids), 1, dtype=torch.long)
        said = torch.tensor([self.says[:max_new_tokens]] * len(input_ids))
        return torch.cat([start, said], dim=1)


def oracle_scores(setting, example, text: str, ends: bool = True) -> Prediction:
    ids = setting.tokenizer(text, add_special_tokens=False)["input_ids"]
    end = setting.tokenizer.eos_token_id
    says = [*ids, end, ids[0], ids[0]] if ends else [*ids, ids[-1], ids[-1], ids[-1]]
    model = Oracle(says, len(setting.tokenizer))
    [prediction] = setting.task.predict(model, [example])
    return prediction


def test_what_comes_after_the_natural_stop_does_not_count(tiny, example):
    setting = tiny("t5", QA)
    prediction = oracle_scores(setting, example("Where?", "the sea"), "the sea")
    assert prediction.text == "the sea"
    assert prediction.scores["exact_match"] == prediction.scores["f1"] == 1.0
    assert prediction.scores["token_accuracy"] == 1.0
    assert not setting.task.is_error(prediction)


def test_forced_and_generated_scores_are_told_apart(tiny, example):
    # All label tokens are right when forced, and yet the model does not stop by itself.
    setting = tiny("t5", QA)
    one = example("Where?", "the sea")
    prediction = oracle_scores(setting, one, "the sea", ends=False)
    n = len(setting.task.answer_ids(one))
    assert prediction.scores["token_accuracy"] == pytest.approx((n - 1) / n)
    assert prediction.scores["exact_match"] == 0.0
    assert prediction.text.startswith("the sea")
    assert setting.task.is_error(prediction)


def test_a_model_that_is_not_asked_to_generate_is_scored_on_the_label_alone(tiny, example):
    setting = tiny("gpt2", "language_modelling")
    one = example("It lies by", "the sea")
    [whole] = setting.task.predict(setting.model, [one])
    dataset = DatasetConfig(
        name="d", label="D", task="language_modelling", builder="b", generate=False
    )
    model = SimpleNamespace(max_length=48, start_token=None, end_token=None)
    task = create_task(dataset, model, setting.tokenizer, setting.model.config)
    [scored] = task.predict(setting.model, [one])
    assert scored.text is None
    assert whole.text is not None
    assert scored.scores == {name: whole.scores[name] for name in scored.scores}
    assert scored.scores.keys() == {"loss", "perplexity", "token_accuracy"}


def test_a_main_measure_that_nobody_knows_is_one_sentence(tiny, monkeypatch):
    setting = tiny("gpt2", QA)
    monkeypatch.setattr(QuestionAnswering, "main_measure", "exact_macth")
    dataset = DatasetConfig(name="d", label="D", task=QA, builder="b")
    model = SimpleNamespace(max_length=48, start_token=None, end_token=None)
    with pytest.raises(ConfigError, match=r"main_measure: unknown measure .* 'exact_match'\?"):
        create_task(dataset, model, setting.tokenizer, setting.model.config)


def test_answers_are_always_generated():
    with pytest.raises(ConfigError, match="'generate: false' is for language modelling, not for"):
        validate(
            DatasetConfig,
            {"name": "d", "label": "D", "task": QA, "builder": "b", "generate": False},
            "suite",
        )


def test_a_wrong_answer_of_equal_length_has_the_released_floor(tiny, example):
    setting = tiny("t5", QA)
    one = example("Where?", "Paris")
    wanted = setting.task.answer_ids(one)[:-1]
    said = [token + 1 for token in wanted]
    assert not set(said) & set(wanted)
    model = Oracle([*said, setting.tokenizer.eos_token_id], len(setting.tokenizer))
    [prediction] = setting.task.predict(model, [one])
    # The end of sequence is the one common token.
    assert prediction.scores["f1_released"] == pytest.approx(1 / (len(wanted) + 1))
    assert prediction.scores["f1"] == 0.0


@pytest.mark.parametrize("label", ["", " ", "\n"])
def test_an_empty_answer_is_an_error_that_names_the_row(setting, example, label):
    with pytest.raises(DataError, match="example 'row-7' has an empty answer"):
        setting.task.encode([example("Who?", label, "row-7")])


LONG = "The river runs from the hills down to the sea. " * 10 + "What is the capital of France?"


@pytest.mark.parametrize("architecture", ["t5", "gpt2"])
def test_a_long_prompt_keeps_its_end(tiny, example, architecture):
    setting = tiny(architecture, QA, max_length=40)
    ids = setting.task.prompt_ids(example(LONG, "Paris"))
    assert len(ids) <= 40
    end = "capital of France?"
    assert setting.tokenizer.decode(ids, skip_special_tokens=True).strip().endswith(end)
    batch = setting.task.encode([example(LONG, "Paris")])
    assert batch["input_ids"].shape[1] <= 40
    labels = [t for t in batch["labels"][0].tolist() if t != IGNORED]
    assert setting.tokenizer.decode(labels, skip_special_tokens=True).strip() == "Paris"


def test_a_long_prompt_is_the_same_tokens_scored_and_continued(tiny, example):
    # The key of an edit is what the layer sees at the prompt's end, so the cut must not depend
    # on the answer.
    setting = tiny("gpt2", QA, max_length=40)
    seen = []
    for label in ("Paris", "Nobody knows who wrote the play"):
        batch = setting.task.encode([example(LONG, label)])
        seen.append(batch["input_ids"][batch["labels"] == IGNORED].tolist())
    assert seen[0] == seen[1] == setting.task.prompt_ids(example(LONG, "x"))


def test_a_long_prompt_leaves_positions_to_generate_on(tiny, example):
    setting = tiny("gpt2", "language_modelling", max_length=64)  # all positions the model has
    [prediction] = setting.task.predict(setting.model, [example(LONG, "Paris")])
    assert math.isfinite(prediction.scores["loss"])


def test_more_positions_than_the_model_has_are_refused(tiny):
    with pytest.raises(ConfigError, match="max_length 65 is more than the model's 64 positions"):
        tiny("gpt2", QA, max_length=65)


def test_a_passage_without_a_prompt_is_learnt_whole(tiny, example):
    setting = tiny("gpt2", "language_modelling")
    batch = setting.task.encode([example("", "The river runs.")])
    end = setting.tokenizer.eos_token_id
    ids = setting.tokenizer("The river runs.")["input_ids"]
    assert batch["input_ids"].tolist() == [[end, *ids, end]]
    assert batch["labels"].tolist() == [[IGNORED, *ids, end]]


@pytest.mark.parametrize(
    ("task", "match", "is_error"),
    [(QA, 1.0, False), (QA, 0.0, True), ("language_modelling", 1.0, True)],
)
def test_what_counts_as_an_error(tiny, task, match, is_error):
    setting = tiny("gpt2", task)
    assert setting.task.is_error(Prediction("", {"exact_match": match})) is is_error


def test_predicting_takes_no_gradients_and_leaves_the_model_alone(setting, examples):
    before = {name: p.clone() for name, p in setting.model.state_dict().items()}
    setting.task.predict(setting.model, examples)
    assert all(p.grad is None for p in setting.model.parameters())
    after = setting.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


SUBJECTS = [
    ("What is the capital of France?", "France"),
    ("France, as one says of france in France?", "France"),
    ("France is far", "France"),
]


@pytest.mark.parametrize(("text", "subject"), SUBJECTS)
def test_a_subject_is_found_where_it_is_last_mentioned(setting, example, text, subject):
    row = {**example(text, "Paris", "e"), "subject": subject}
    start, end = setting.task.subject_span(row)
    ids = setting.task.encode([row])["input_ids"][0]
    assert subject in setting.tokenizer.decode(ids[start:end])
    assert subject not in setting.tokenizer.decode(ids[end : len(setting.task.prompt_ids(row))])


def test_a_subject_that_is_not_in_the_prompt_has_no_place(setting, example):
    row = example("What is the capital of France?", "Paris", "e")
    assert setting.task.subject_span({**row, "subject": "Spain"}) is None
    assert setting.task.subject_span({**row, "subject": None}) is None
    assert setting.task.subject_span(row) is None


def test_a_subject_that_a_long_prompt_loses_has_no_place(tiny, example):
    task = tiny("gpt2", QA, max_length=24).task
    row = {**example("France, " + "on and on " * 30, "Paris", "e"), "subject": "France"}
    assert task.subject_span(row) is None
    late = {**example("on and on " * 30 + "in France", "Paris", "e"), "subject": "France"}
    start, end = task.subject_span(late)
    assert 0 < start < end <= len(task.prompt_ids(late))


LONG_ANSWER = "the river runs from the hills down to the sea " * 12


@pytest.mark.parametrize("architecture", ["t5", "gpt2"])
def test_what_is_cut_off_is_counted_in_tokens(tiny, example, architecture):
    setting = tiny(architecture, QA, max_length=40)
    task, whole = setting.task, tiny(architecture, QA, max_length=64).task
    assert task.truncation(example(*PAIRS[0])) == Truncation(text=0, label=0)
    cut = task.truncation(example(LONG, "Paris"))
    assert cut.text > 0
    assert cut.label == 0
    assert whole.truncation(example(LONG, "Paris")).text < cut.text
    long_label = example("Who?", LONG_ANSWER)
    wanted = task.answer_ids(long_label)
    kept = [t for t in task.encode([long_label])["labels"][0].tolist() if t != IGNORED]
    assert kept == wanted[: len(kept)]
    assert task.truncation(long_label, asked=False) == Truncation(0, len(wanted) - len(kept))
    assert task.truncation(long_label) == Truncation(0, len(wanted) - task.max_new_tokens)


@pytest.mark.parametrize("architecture", ["t5", "gpt2"])
def test_a_label_that_does_not_fit_at_all_is_refused(tiny, example, architecture):
    task = tiny(architecture, QA, max_length=1).task
    with pytest.raises(DataError, match="example 'row-7': max_length 1 leaves no room for its lab"):
        task.encode([example("Who?", "Paris", "row-7")])
