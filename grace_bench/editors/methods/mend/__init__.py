"""MEND (Mitchell et al. 2022): a trained map of gradients to updates."""

from grace_bench.registry import EditorSpec

SPEC = EditorSpec(
    hyperparameters="grace_bench.editors.methods.mend.hyperparameters:MendHyperparameters",
    editor="grace_bench.editors.methods.mend.editor:MendEditor",
    assets="grace_bench.editors.methods.mend.training:make_assets",
    order=4,
    colour="#8A7300",
    marker="P",
)
