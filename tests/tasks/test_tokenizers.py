"""What is asked, generated and compared, for tokenizers of every kind and models of every task."""

from __future__ import annotations

import pytest
import torch
from tokenizers_of_kinds import BOS, KINDS, PAIRS, byte_level, metaspace, normalising
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)

from grace_bench.editors import create_editor
from grace_bench.errors import ConfigError
from grace_bench.run.evaluation import Evaluator
from grace_bench.steps.baseline import count_truncated
from grace_bench.tasks.base import IGNORED
from grace_bench.tasks.kinds.classification import Classification
from grace_bench.tasks.kinds.language_modelling import LanguageModelling
from grace_bench.tasks.kinds.question_answering import QuestionAnswering
from grace_bench.tasks.tokens import Texts

ROWS = [
    {"example_id": f"e{i}", "fact_id": f"f{i}", "text": text, "label": label}
    for i, (text, label) in enumerate(PAIRS)
]
CLASSES = {row["label"]: i for i, row in enumerate(ROWS)}


def gpt2_config(size: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=size, n_embd=32, n_layer=1, n_head=2, n_positions=128, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        num_labels=3, label2id=CLASSES, id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip


def t5_config(size: int, **more) -> T5Config:
    return T5Config(
        vocab_size=size, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, label2id=CLASSES,
        id2label=dict(enumerate(CLASSES)), **more,
    )  # fmt: skip


def bert_config(size: int) -> BertConfig:
    return BertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=128, label2id=CLASSES,
        id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip


GENERATORS = {"gpt2": (gpt2_config, GPT2LMHeadModel), "t5": (t5_config, T5ForConditionalGeneration)}
CLASSIFIERS = {
    "gpt2": (gpt2_config, GPT2ForSequenceClassification),
    "bert": (bert_config, BertForSequenceClassification),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def build(kinds, architecture, tokenizer):
    make_config, make_model = kinds[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_model(make_config(len(tokenizer))).eval()


def teach(model, task):
    """Train a model until it knows the rows."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(400):
        loss = model(**task.encode(ROWS)).loss
        if loss.item() < 0.01:
            return
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    pytest.fail(f"the model does not learn its rows: {loss.item()}")


@pytest.mark.parametrize("architecture", GENERATORS)
def test_a_model_that_knows_the_answers_is_right_alone_and_in_a_batch(tokenizer, architecture):
    model = build(GENERATORS, architecture, tokenizer)
    task = QuestionAnswering(tokenizer, model.config, max_length=64)
    teach(model, task)
    together = task.predict(model, ROWS)
    for row, found in zip(ROWS, together, strict=True):
        [alone] = task.predict(model, [row])
        assert alone.text == found.text
        assert alone.scores == pytest.approx(found.scores, rel=1e-3, abs=1e-4)
        assert found.scores["exact_match"] == found.scores["f1"] == 1.0
        assert found.scores["token_accuracy"] == 1.0
        assert not task.is_error(found)


@pytest.mark.parametrize("task_class", [QuestionAnswering, LanguageModelling])
@pytest.mark.parametrize("kind", KINDS)
def test_a_causal_model_reads_prompt_and_answer_as_one_text(kind, task_class):
    tokenizer = KINDS[kind]()
    task = task_class(tokenizer, gpt2_config(len(tokenizer)), 64)
    for row in ROWS:
        batch = task.encode([row])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        prompt = task.prompt_ids(row)
        assert prompt == [*task.texts.starts, *task.texts.plain(row["text"])]
        assert labels == [IGNORED] * len(prompt) + ids[len(prompt) :]
        if kind == "across":
            continue
        joined = tokenizer(f"{row['text']} {row['label']}", add_special_tokens=False)["input_ids"]
        assert ids == [*task.texts.starts, *joined, task.texts.end]
        last_word = row["text"].split()[-1][:-1]
        start, end = task.subject_span({**row, "subject": last_word})
        assert tokenizer.decode(ids[start:end]).strip(" ?").lower() == last_word.lower()


def test_a_token_over_the_border_leaves_the_prompts_tokens_as_they_are():
    tokenizer = KINDS["across"]()
    task = QuestionAnswering(tokenizer, gpt2_config(len(tokenizer)), 64)
    row = ROWS[1]
    joined = tokenizer(f"{row['text']} {row['label']}")["input_ids"]
    prompt, answer = task.prompt_ids(row), task.answer_ids(row)
    assert joined[: len(prompt)] != prompt
    assert tokenizer.decode([*prompt, *answer[:-1]]) == tokenizer.decode(joined)


def test_prompts_begin_and_end_as_the_tokenizer_has_it(tokenizer):
    texts = Texts(tokenizer)
    own = tokenizer(PAIRS[0][0])["input_ids"]
    whole = texts.ids(PAIRS[0][0])
    # The template of a SentencePiece file may be lost; its start token is not.
    lost = tokenizer.bos_token == BOS and BOS not in tokenizer.convert_ids_to_tokens(own)
    assert whole == ([tokenizer.bos_token_id, *own] if lost else own)


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_classifier_says_the_same_alone_and_in_a_batch(tokenizer, architecture):
    model = build(CLASSIFIERS, architecture, tokenizer)
    task = Classification(tokenizer, model.config, max_length=64)
    together = task.predict(model, ROWS)
    for row, found in zip(ROWS, together, strict=True):
        [alone] = task.predict(model, [row])
        assert alone.text == found.text
        assert alone.scores == pytest.approx(found.scores, rel=1e-3, abs=1e-4)


SPECIAL = {"metaspace": "</s>", "byte_level": "<|endoftext|>", "word_piece": "[SEP]"}


@pytest.mark.parametrize(("kind", "mark"), SPECIAL.items())
def test_special_tokens_that_are_written_in_texts_are_text(kind, mark):
    tokenizer = KINDS[kind]()
    row = {"example_id": "e", "text": f"Who {mark} wrote", "label": f"the {mark} tag"}
    task = QuestionAnswering(tokenizer, gpt2_config(len(tokenizer)), 128)
    ids = task.encode([row])["input_ids"][0].tolist()
    around = task.texts.starts.count(tokenizer.convert_tokens_to_ids(mark))
    assert ids.count(tokenizer.convert_tokens_to_ids(mark)) == around + 1  # the answer's end
    classifier = Classification(tokenizer, bert_config(len(tokenizer)), 128)
    text = classifier.encode([{**row, "label": "Paris"}])["input_ids"][0].tolist()
    assert text == classifier.texts.ids(row["text"])
    assert text.count(tokenizer.convert_tokens_to_ids(mark)) <= 1
    assert Texts(tokenizer).decode(task.answer_ids({**row, "text": ""})).replace(" ", "") == (
        tokenizer.decode(task.texts.plain(row["label"])).replace(" ", "")
    )


def row_of(text, label, **more):
    return {"example_id": "e", "text": text, "label": label, **more}


def test_a_t5_as_classifier_says_the_same_alone_and_in_a_batch():
    tokenizer = metaspace()
    torch.manual_seed(0)
    config = t5_config(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model = T5ForSequenceClassification(config).eval()
    task = Classification(tokenizer, model.config, 64)
    for row, found in zip(ROWS, task.predict(model, ROWS), strict=True):
        assert task.predict(model, [row])[0].scores == pytest.approx(found.scores, abs=1e-4)


def test_a_tokenizer_without_an_end_is_one_sentence_and_a_setting_of_the_model():
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer)
    config = gpt2_config(len(bare))
    with pytest.raises(ConfigError, match="has no end-of-sequence token"):
        QuestionAnswering(bare, config, 64)
    task = QuestionAnswering(bare, config, 64, end_token="<|endoftext|>")
    assert task.answer_ids(ROWS[0])[-1] == bare.convert_tokens_to_ids("<|endoftext|>")
    model = build(CLASSIFIERS, "gpt2", bare)  # a classifier needs no end, and pads with anything
    task = Classification(bare, model.config, 64)
    for row, found in zip(ROWS, task.predict(model, ROWS), strict=True):
        assert task.predict(model, [row])[0].scores == pytest.approx(found.scores, abs=1e-4)


def test_the_start_token_is_a_setting_of_the_model():
    tokenizer = byte_level()
    config = gpt2_config(len(tokenizer))
    own = tokenizer(ROWS[0]["text"])["input_ids"]
    assert QuestionAnswering(tokenizer, config, 64).prompt_ids(ROWS[0]) == own
    started = QuestionAnswering(tokenizer, config, 64, start_token="<|endoftext|>")
    assert started.prompt_ids(ROWS[0]) == [tokenizer.eos_token_id, *own]
    long = row_of(" ".join(["river"] * 80), "Paris")
    assert started.prompt_ids(long)[0] == tokenizer.eos_token_id
    llama = KINDS["metaspace_started"]()
    plain = llama(ROWS[0]["text"], add_special_tokens=False)["input_ids"]
    assert QuestionAnswering(llama, config, 64, start_token="").prompt_ids(ROWS[0]) == plain
    with pytest.raises(ConfigError, match="start_token: the model's tokenizer has no token"):
        QuestionAnswering(tokenizer, config, 64, start_token="<bos>")


def test_an_empty_prompt_is_a_token_all_the_same():
    tokenizer = byte_level()
    task = LanguageModelling(tokenizer, gpt2_config(len(tokenizer)), 64)
    assert task.prompt_ids(row_of("", "The river")) == [tokenizer.eos_token_id]
    assert task.answer_ids(row_of("", "The river"))[:-1] == tokenizer("The river")["input_ids"]


def test_an_encoder_cannot_be_asked_to_write():
    tokenizer = byte_level()
    for config in (bert_config(len(tokenizer)), RobertaConfig(vocab_size=len(tokenizer))):
        with pytest.raises(ConfigError, match=f"a {config.model_type} model cannot generate text"):
            QuestionAnswering(tokenizer, config, 64)


def test_positions_of_roberta_begin_behind_its_padding():
    tokenizer = metaspace()
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=1)
    Classification(tokenizer, config, 64)
    with pytest.raises(ConfigError, match="max_length 65 is more than the model's 64 positions"):
        Classification(tokenizer, config, 65)


@pytest.mark.parametrize("label", ["G\u0151r", "E\u00b2", "\u00bd"])
def test_a_label_that_cannot_be_said_is_counted_and_compared_as_it_can_be(label):
    tokenizer = normalising()
    config = t5_config(len(tokenizer))
    task = QuestionAnswering(tokenizer, config, 64)
    row = row_of("What?", label)
    assert count_truncated(task, "edits", [row, ROWS[0]]).unsayable == 1
    model = T5ForConditionalGeneration(config)
    model.generate = lambda **_: torch.tensor([[0, *task.answer_ids(row)]])
    [prediction] = task.predict(model, [row])
    assert prediction.scores["exact_match"] == 1.0
    assert not task.is_error(prediction)
    model.generate = lambda **_: torch.tensor([[0, tokenizer.eos_token_id]])
    assert task.is_error(task.predict(model, [row])[0])


@pytest.mark.parametrize("architecture", GENERATORS)
def test_answers_may_be_as_long_as_they_are(architecture):
    tokenizer = metaspace()
    config = GENERATORS[architecture][0](len(tokenizer))
    long = row_of("Who played?", "Paris Jane Emma " * 12)
    task = QuestionAnswering(tokenizer, config, 128)
    n = len(task.answer_ids(long))
    assert task.max_new_tokens < n < 64
    assert task.truncation(long).label == n - task.max_new_tokens
    task.make_room([*ROWS, long])
    assert (task.max_new_tokens, task.answer_room, task.truncation(long).label) == (n, n, 0)
    passages = LanguageModelling(tokenizer, config, 128)
    passages.make_room([row_of("Who played?", "Paris Jane Emma " * 100)])
    assert passages.max_new_tokens == 64


def test_every_right_answer_is_right():
    tokenizer = metaspace()
    config = t5_config(len(tokenizer))
    task, model = QuestionAnswering(tokenizer, config, 64), T5ForConditionalGeneration(config)
    row = row_of("Who?", "Paris", answers=["Paris", "Jane Austen"])
    scores = []
    for said in ("Paris", "Jane Austen", "Austen", "river"):
        ids = torch.tensor([[0, *task.answer_ids(row_of("Who?", said))]])
        model.generate = lambda ids=ids, **_: ids
        [prediction] = task.predict(model, [row])
        scores.append((prediction.scores["exact_match"], round(prediction.scores["f1"], 3)))
        assert task.is_error(prediction) is (scores[-1][0] == 0)
    assert scores == [(1, 1), (1, 1), (0, 0.667), (0, 0)]
    assert task.answer_ids(row) == task.answer_ids(row_of("Who?", "Paris"))  # which is taught


def test_an_evaluator_does_not_mix_up_rows_that_differ_in_their_right_answers():
    tokenizer = metaspace()
    model = build(GENERATORS, "t5", tokenizer)
    task = QuestionAnswering(tokenizer, model.config, 64)
    teach(model, task)
    editor = create_editor("grace", model, "encoder.block.0.layer.1.DenseReluDense.wo")
    evaluator = Evaluator(editor, task, batch_size=8)
    one = {**ROWS[0], "label": "Emma"}
    both = {**one, "answers": ["Emma", ROWS[0]["label"]]}
    for _ in range(2):
        found = [p.scores["exact_match"] for p in evaluator.predict([one, both, one])]
        assert found == [0.0, 1.0, 0.0]
