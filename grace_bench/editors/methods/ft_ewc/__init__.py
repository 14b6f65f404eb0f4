"""FT with elastic weight consolidation (Kirkpatrick et al. 2017)."""

from grace_bench.registry import EditorSpec

SPEC = EditorSpec(
    hyperparameters="grace_bench.editors.methods.ft_ewc.hyperparameters:EwcHyperparameters",
    editor="grace_bench.editors.methods.ft_ewc.editor:EwcEditor",
    order=2,
    colour="#56B4E9",
    marker="^",
)
