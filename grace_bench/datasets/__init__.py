"""Data sets: builders make rows, `base.prepare` checks and writes them.

builder_class = DATASETS.get("facts_qa")
builder = builder_class(builder_class.options_class(seed=1))
manifest = prepare(builder, folder, task="question_answering", config={})
"""
