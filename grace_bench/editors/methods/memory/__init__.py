"""Memory: soft attention over trained values."""

from grace_bench.registry import EditorSpec

SPEC = EditorSpec(
    hyperparameters="grace_bench.editors.methods.memory.hyperparameters:MemoryHyperparameters",
    editor="grace_bench.editors.methods.memory.editor:MemoryEditor",
    order=7,
    colour="#CC79A7",
    marker="h",
)
