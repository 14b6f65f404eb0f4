"""FT: finetune one weight on each edit alone."""

from grace_bench.registry import EditorSpec

SPEC = EditorSpec(
    hyperparameters="grace_bench.editors.methods.ft.hyperparameters:FinetuneHyperparameters",
    editor="grace_bench.editors.methods.ft.editor:FinetuneEditor",
    order=1,
    colour="#E69F00",
    marker="v",
)
