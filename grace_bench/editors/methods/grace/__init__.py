"""GRACE (Hartvigsen et al. 2023): a codebook of keys, values and radii at one layer."""

from grace_bench.registry import EditorSpec

SPEC = EditorSpec(
    hyperparameters="grace_bench.editors.methods.grace.hyperparameters:GraceHyperparameters",
    editor="grace_bench.editors.methods.grace.editor:GraceEditor",
    order=8,
    colour="#D55E00",
    marker="o",
)
