"""FT with periodic retraining on past edits."""

from grace_bench.registry import EditorSpec

SPEC = EditorSpec(
    hyperparameters="grace_bench.editors.methods.ft_retrain.hyperparameters:RetrainHyperparameters",
    editor="grace_bench.editors.methods.ft_retrain.editor:RetrainEditor",
    order=3,
    colour="#009E73",
    marker="s",
)
