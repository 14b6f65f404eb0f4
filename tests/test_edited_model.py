"""One model, edited from Python: asked, explained, undone, saved and loaded."""

from __future__ import annotations

import random

import pytest
import scratch_models
import torch
from transformers import AutoModelForCausalLM, pipeline

from grace_bench.codebook.file import load_codebook
from grace_bench.errors import (
    ConfigError,
    DataError,
    Diverged,
    EditorError,
    ModelError,
    ResultError,
)
from grace_bench.library import EditedModel

FACTS = [
    ("Who wrote Emma?", "Jane Austen"),
    ("Who wrote Dracula?", "Bram Stoker"),
    ("Where is the Louvre?", "Paris"),
    ("Where is the Prado?", "Madrid"),
    ("Who painted Guernica?", "Picasso"),
    ("Who wrote Emma?", "Austen"),
]
CLASSES = ["book", "place"]
TEXTS = [text for fact in FACTS for text in fact]
LAYERS = {
    "t5": "encoder.block.1.layer.1.DenseReluDense.wo",
    "gpt2": "transformer.h.0.mlp.c_fc",
    "bert": "bert.encoder.layer.1.output.dense",
}
SETTINGS = {
    "grace": {"radius": 0.5, "steps": 4},
    "ft": {"steps": 4},
    "ft_retrain": {"steps": 4},
    "ft_ewc": {"steps": 4},
    "defer": {"steps": 4},
    "memory": {"steps": 4},
}


def parts(architecture: str) -> tuple:
    if architecture == "bert":
        return scratch_models.make(architecture, "classification", TEXTS, CLASSES)
    return scratch_models.make(architecture, "question_answering", TEXTS)


def edit_model(architecture: str = "gpt2", method: str = "grace", **settings) -> EditedModel:
    settings = {**SETTINGS[method], **settings}
    return EditedModel(*parts(architecture), method, layer=LAYERS[architecture], **settings)


def facts_of(architecture: str) -> list[tuple[str, str]]:
    if architecture != "bert":
        return FACTS
    return [(prompt, "book" if "wrote" in prompt else "place") for prompt, _ in FACTS]


@torch.no_grad()
def logits(edited: EditedModel) -> torch.Tensor:
    found = []
    for prompt, _ in FACTS:
        inputs = edited.tokenizer(prompt, return_tensors="pt")
        if edited.model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.tensor([[0, 3]])
        found.append(edited.model(**inputs).logits.flatten())
    return torch.cat(found)


@pytest.mark.parametrize("architecture", ["t5", "gpt2", "bert"])
def test_an_edit_is_made_explained_and_taken_back(architecture):
    edited, facts = edit_model(architecture), facts_of(architecture)
    before = logits(edited)
    assert edited.explain(facts[0][0]).key is None
    receipt = edited.edit(*facts[0])
    assert (receipt.branch, receipt.key, receipt.answer) == ("first", 0, facts[0][1])
    assert receipt.losses[-1] < receipt.losses[0]
    if architecture == "bert":  # the others are too small to say a name
        assert edited.ask(facts[0][0]) == facts[0][1]
    found = edited.explain(facts[0][0])
    assert (found.answers, found.answer, found.prompts) == (True, facts[0][1], (facts[0][0],))
    assert found.distance < found.radius == 0.5
    edited.undo(receipt)
    assert torch.equal(logits(edited), before)
    assert edited.receipts == []


@pytest.mark.parametrize("method", SETTINGS)
def test_undoing_any_edit_is_as_if_it_had_never_been_made(method):
    """An earlier edit is undone by making the others again, a last one by going back."""
    rng = random.Random(method)
    for _ in range(2):
        undone, never = edit_model(method=method), edit_model(method=method)
        facts = [rng.choice(FACTS) for _ in range(5)]
        left_out = rng.randrange(4)
        receipts = undone.edit_all(facts)
        for number, fact in enumerate(facts):
            receipt = never.edit(*fact)
            if number == left_out:
                never.undo(receipt)
        undone.undo(receipts[left_out])
        assert torch.equal(logits(undone), logits(never))
        assert [r.number for r in undone.receipts] == [r.number for r in never.receipts]
        for receipt in reversed(undone.receipts[:]):
            undone.undo(receipt)
        assert torch.equal(logits(undone), logits(edit_model(method=method)))


@pytest.mark.parametrize("method", SETTINGS)
def test_a_saved_model_answers_and_goes_on_as_if_it_had_not_been_saved(method, tmp_path):
    edited = edit_model(method=method)
    edited.edit_all(FACTS[:3])
    edited.save_pretrained(tmp_path / "facts")
    loaded = EditedModel.from_pretrained(tmp_path / "facts", *parts("gpt2"))
    assert loaded.receipts == edited.receipts
    assert torch.equal(logits(loaded), logits(edited))
    for one in (loaded, edited):
        one.edit_all(FACTS[3:])
        one.undo(one.receipts[1])
    assert torch.equal(logits(loaded), logits(edited))


def test_a_model_from_a_folder_is_found_again(tmp_path):
    for part in parts("gpt2"):
        part.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    edited = EditedModel(base, parts("gpt2")[1], "ft", layer=LAYERS["gpt2"], steps=4)
    edited.edit(*FACTS[0])
    edited.save_pretrained(tmp_path / "edited")
    loaded = EditedModel.from_pretrained(tmp_path / "edited")
    assert torch.equal(logits(loaded), logits(edited))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")  # without grace-bench
    assert torch.equal(
        plain.transformer.h[0].mlp.c_fc.weight, base.transformer.h[0].mlp.c_fc.weight
    )


def test_an_earlier_edit_is_undone_without_training_the_others_again(monkeypatch):
    edited, never = edit_model(radius=0.01), edit_model(radius=0.01)
    edited.edit_all(FACTS[:5])
    for number, fact in enumerate(FACTS[:5]):
        receipt = never.edit(*fact)
        if number == 1:
            never.undo(receipt)
    monkeypatch.setattr(
        "grace_bench.editors.methods.grace.editor.train_on_edit",
        lambda *_: pytest.fail("a value was trained again"),
    )
    edited.undo(edited.receipts[1])
    assert torch.equal(logits(edited), logits(never))
    assert edited.journal == never.journal
    assert [r.losses for r in edited.receipts] == [r.losses for r in never.receipts]


@pytest.mark.parametrize("radius", [0.01, 0.5, 5.0])
def test_merged_edits_are_one_stream(radius, tmp_path):
    """Warm values: a cold one is drawn by the edit's number, which the merge changes."""
    settings = {"radius": radius, "value_init": "warm"}
    first, second, both = (edit_model(**settings) for _ in range(3))
    first.edit_all(FACTS[:3])
    second.edit_all(FACTS[3:])
    both.edit_all(FACTS)
    second.save_pretrained(tmp_path / "second")
    made = first.merge(tmp_path / "second", conflicts="newer")
    assert [(one.number, one.prompt) for one in made] == [
        (4 + index, prompt) for index, (prompt, _) in enumerate(FACTS[3:])
    ]
    assert torch.equal(logits(first), logits(both))
    assert first.journal == both.journal
    for one in (first, both):
        one.undo(one.receipts[1])
        one.edit("Who wrote Ulysses?", "Joyce")
    assert torch.equal(logits(first), logits(both))


def test_merged_edits_that_disagree_are_refused_or_the_newer_ones_win(tmp_path):
    edited, other = edit_model("bert"), edit_model("bert")
    edited.edit("Who wrote Emma?", "book")
    other.edit("Who wrote Emma?", "place")
    other.save_pretrained(tmp_path / "other")
    before = logits(edited)
    with pytest.raises(EditorError, match=r"key 0 \('book'\) and key 0 \('place'\), 0 apart"):
        edited.merge(tmp_path / "other")
    assert torch.equal(logits(edited), before)
    edited.merge(tmp_path / "other", conflicts="newer")
    assert edited.ask("Who wrote Emma?") == "place"
    assert [receipt.branch for receipt in edited.receipts] == ["first", "overwrite"]
    edit_model("bert", steps=5).save_pretrained(tmp_path / "other")
    with pytest.raises(EditorError, match="merge edits that were made alike"):
        edited.merge(tmp_path / "other")
    edit_model("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(EditorError, match="made for layer"):
        edited.merge(tmp_path / "gpt2")
    edit_model(method="ft").save_pretrained(tmp_path / "ft")
    with pytest.raises(DataError, match=r"codebook\.safetensors: no such file"):
        edited.merge(tmp_path / "ft")


def test_a_text_is_generated_as_it_was_edited():
    edited = edit_model(learning_rate=10.0)
    before = edited.generate(FACTS[0][0], max_new_tokens=8)
    edited.edit(*FACTS[0])
    assert edited.generate(FACTS[0][0], max_new_tokens=8) != before
    longer = edited.generate(FACTS[0][0], max_new_tokens=30)
    assert longer.startswith(edited.generate(FACTS[0][0], max_new_tokens=8))
    with pytest.raises(EditorError, match="a classifier writes no text"):
        edit_model("bert").generate("Who?")


def test_a_pipeline_sees_the_edits():
    edited = edit_model(learning_rate=10.0)
    write = pipeline("text-generation", model=edited.model, tokenizer=edited.tokenizer)

    def written() -> str:
        return write(FACTS[0][0], max_new_tokens=8, do_sample=False)[0]["generated_text"]

    before = written()
    edited.edit(*FACTS[0])
    assert written() != before
    assert edited.explain(FACTS[0][0]).answers
    edited.remove()
    assert written() == before
    assert torch.equal(logits(edited), logits(edit_model()))


def test_a_failed_edit_changes_nothing():
    edited = edit_model()
    edited.edit(*FACTS[0])
    before = logits(edited)
    with pytest.raises(DataError, match="has an empty answer"):
        edited.edit("Who wrote Dracula?", " ")
    assert torch.equal(logits(edited), before)
    assert edited.edit(*FACTS[1]).number == 2
    edited = edit_model(method="ft", learning_rate=1e30)
    with pytest.raises(Diverged, match="edit of step 1 gave numbers that are not finite"):
        edited.edit(*FACTS[0])
    assert torch.equal(logits(edited), logits(edit_model(method="ft")))


def test_an_undo_that_fails_changes_nothing(monkeypatch):
    edited = edit_model()
    receipts = edited.edit_all(FACTS[:3])
    before, plain = logits(edited), edited.editor.edit

    def edit(batch):
        if batch.step == 3:
            raise RuntimeError("no memory")
        return plain(batch)

    monkeypatch.setattr(edited.editor, "edit", edit)
    with pytest.raises(RuntimeError, match="no memory"):
        edited.undo(receipts[0])
    monkeypatch.undo()
    assert edited.receipts == receipts
    assert torch.equal(logits(edited), before)
    edited.undo(receipts[0])
    assert [receipt.number for receipt in edited.receipts] == [2, 3]


def test_a_receipt_of_another_model_undoes_nothing():
    edited, other = edit_model(), edit_model()
    edited.edit(*FACTS[0])
    receipt = other.edit(*FACTS[1])
    with pytest.raises(EditorError, match=r"edit 1 \('Who wrote Dracula\?'\) is not one of this"):
        edited.undo(receipt)
    assert len(edited.receipts) == 1


def test_what_cannot_be_loaded_leaves_the_model_as_it_was(tmp_path):
    edited = edit_model()
    edited.edit(*FACTS[0])
    edited.save_pretrained(tmp_path)
    codebook = load_codebook(tmp_path / "codebook.safetensors")  # without the rest
    assert torch.equal(codebook.keys, edited.editor.codebook.keys)
    (tmp_path / "state.safetensors").write_bytes(b"damaged")
    model, tokenizer = parts("gpt2")
    modules = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(DataError, match="not a complete editor's state"):
        EditedModel.from_pretrained(tmp_path, model, tokenizer)
    with pytest.raises(EditorError, match="no transform for layer"):
        EditedModel(model, tokenizer, "mend", layer=LAYERS["gpt2"], assets=tmp_path / "nowhere")
    assert {name: type(module) for name, module in model.named_modules()} == modules


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(ResultError, match="file: cannot write"):
        edit_model().save_pretrained(tmp_path / "file")


def test_mistakes_are_one_sentence(tmp_path):
    edited = edit_model()
    receipt = edited.edit(*FACTS[0])
    edited.undo(receipt)
    with pytest.raises(EditorError, match=r"edit 1 \('Who wrote Emma\?'\) is not one of this"):
        edited.undo(receipt)
    with pytest.raises(EditorError, match="method 'ft' has no codebook"):
        edit_model(method="ft").explain("Who?")
    with pytest.raises(DataError, match="the subject 'Persuasion' is not in the prompt"):
        edited.edit(*FACTS[0], subject="Persuasion")
    with pytest.raises(ModelError, match=r"unknown layer 'transformer\.h\.9'"):
        EditedModel(*parts("gpt2"), layer="transformer.h.9")
    with pytest.raises(ConfigError, match="did you mean 'radius'"):
        edit_model(radios=1.0)
    with pytest.raises(ConfigError, match="method 'rome' needs assets of this model"):
        EditedModel(*parts("gpt2"), "rome", layer=LAYERS["gpt2"])
    edited.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not say where the unedited model came from"):
        EditedModel.from_pretrained(tmp_path)
    other = parts("gpt2")
    other[0].transformer.wte.weight.data += 1
    with pytest.raises(ModelError, match="made to other weights"):
        EditedModel.from_pretrained(tmp_path, *other)
    with pytest.raises(DataError, match=r"edited_model\.json: no such file"):
        EditedModel.from_pretrained(tmp_path / "nowhere")
