"""Defer: a trained gate between the layer and a linear map."""

from grace_bench.registry import EditorSpec

SPEC = EditorSpec(
    hyperparameters="grace_bench.editors.methods.defer.hyperparameters:DeferHyperparameters",
    editor="grace_bench.editors.methods.defer.editor:DeferEditor",
    order=5,
    colour="#0072B2",
    marker="D",
)
