"""The unedited model, the control of every comparison."""

from grace_bench.registry import EditorSpec

SPEC = EditorSpec(
    hyperparameters="grace_bench.editors.methods.unedited.hyperparameters:UneditedHyperparameters",
    editor="grace_bench.editors.methods.unedited.editor:UneditedEditor",
    order=0,
    colour="#7f7f7f",
    marker="x",
)
