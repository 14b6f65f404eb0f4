"""ROME (Meng et al. 2022): a rank-one change of one weight."""

from grace_bench.registry import EditorSpec

SPEC = EditorSpec(
    hyperparameters="grace_bench.editors.methods.rome.hyperparameters:RomeHyperparameters",
    editor="grace_bench.editors.methods.rome.editor:RomeEditor",
    assets="grace_bench.editors.methods.rome.editor:make_assets",
    order=6,
    colour="#8C564B",
    marker="X",
)
