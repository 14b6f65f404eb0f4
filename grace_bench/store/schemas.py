"""The columns of every Parquet file. Torch-free."""

from __future__ import annotations

from functools import cache

import pyarrow as pa

from grace_bench.metrics import MEASURES, per_example

SCHEMA_VERSION = 1
ROLES = ("train", "upstream", "edits", "holdout", "accurate")
REQUIRED_ROLES = ("train", "upstream", "edits")


def _schema(*fields: tuple[str, pa.DataType, bool]) -> pa.Schema:
    metadata = {"grace_bench.schema_version": str(SCHEMA_VERSION)}
    return pa.schema([pa.field(n, t, nullable=null) for n, t, null in fields], metadata=metadata)


EXAMPLES = _schema(
    ("example_id", pa.string(), False),
    ("fact_id", pa.string(), False),
    ("text", pa.string(), False),
    ("label", pa.string(), False),
    ("subject", pa.string(), True),
    ("relation", pa.string(), True),
    (
        "answers",
        pa.list_(pa.string()),
        True,
    ),  # all correct answers, the label first; null: only the label
)

STEPS = _schema(
    ("step", pa.int32(), False),  # position in the edit stream, from 1
    ("n_edits", pa.int32(), False),  # edits made so far, including this step's
    ("example_id", pa.string(), False),
    ("fact_id", pa.string(), False),
    ("is_error", pa.bool_(), False),  # the model was wrong when the example arrived
    ("edited", pa.bool_(), False),
    # GRACE: first, add, expand, reuse, split, overwrite; ROME: subject_last, prompt_last.
    ("branch", pa.string(), True),
    ("key", pa.int32(), True),  # the key that answers the edited example afterwards
    ("nearest_key", pa.int32(), True),  # the nearest key before the edit
    ("distance", pa.float64(), True),  # to the nearest key before the edit
    ("n_keys", pa.int32(), True),
    ("gradient_steps", pa.int32(), True),
    ("loss_first", pa.float64(), True),
    ("loss_last", pa.float64(), True),
    ("edit_seconds", pa.float64(), True),
    ("es", pa.float64(), True),  # the task's main measure right after the edit
)


@cache
def predictions_schema() -> pa.Schema:
    """Return the columns of predictions; measures of other packages have theirs among them."""
    return _schema(
        ("step", pa.int32(), False),
        ("n_edits", pa.int32(), False),
        # edit (right after it), edits (all past), upstream, ...
        ("role", pa.string(), False),
        ("example_id", pa.string(), False),
        ("fact_id", pa.string(), False),
        ("prediction", pa.string(), True),
        *((measure, pa.float64(), True) for measure in per_example()),
        ("key", pa.int32(), True),  # that answered; null where none did, or there are none
    )


def later_columns() -> list[pa.Field]:
    """Return nullable columns that files of earlier versions lack; they are read as null."""
    added = [name for name in per_example() if name not in MEASURES.own]
    return [predictions_schema().field(n) for n in ("key", *added)] + [EXAMPLES.field("answers")]


PROBES = _schema(
    ("step", pa.int32(), False),
    ("n_edits", pa.int32(), False),
    ("metric", pa.string(), False),  # es, err, trr, arr, holdout
    ("measure", pa.string(), False),  # or perplexity_median, perplexity_log_mean
    ("value", pa.float64(), True),
    ("n", pa.int32(), False),  # examples averaged
)

LATENCY = _schema(
    ("step", pa.int32(), False),
    ("n_edits", pa.int32(), False),
    ("n_keys", pa.int32(), True),
    ("example_id", pa.string(), False),
    ("n_tokens", pa.int32(), False),  # of the input
    ("repeats", pa.int32(), False),
    ("seconds", pa.float64(), False),  # median time of one forward pass
    ("seconds_unedited", pa.float64(), False),  # the same without the editor, measured alternately
)

TRAINING_LOG = _schema(
    ("step", pa.int32(), False),  # optimiser step of the base model's training, from 1
    ("loss", pa.float64(), False),  # mean over the step's examples, before the step
    ("learning_rate", pa.float64(), False),
    ("examples", pa.int64(), False),  # seen so far, including this step's
    ("seconds", pa.float64(), False),  # training time so far, interruptions excluded
)

CODEBOOK = _schema(
    ("key", pa.int32(), False),
    ("label", pa.string(), False),
    ("radius", pa.float64(), False),
    ("made_at_step", pa.int32(), False),
    ("changed_at_step", pa.int32(), False),
    ("n_examples", pa.int32(), False),
    ("example_ids", pa.list_(pa.string()), False),
)

CODEBOOK_EXPORT = _schema(
    *((field.name, field.type, False) for field in CODEBOOK),
    ("label_ids", pa.list_(pa.int64()), False),  # the label's tokens
    ("label_mean", pa.float64(), False),
    ("vector", pa.list_(pa.float32()), False),
    ("value", pa.list_(pa.float32()), False),
)

JOURNAL = _schema(
    # What one edit changed in a codebook: a row for each key, with what it was before. Null: the
    # edit made the key, or did not change this of it.
    ("step", pa.int32(), False),
    ("key", pa.int32(), False),
    ("radius", pa.float64(), True),  # null: the edit made the key
    ("changed_at_step", pa.int32(), True),
    ("n_examples", pa.int32(), True),  # edits only add examples, but for a new label
    ("label", pa.string(), True),
    ("label_ids", pa.list_(pa.int64()), True),
    ("label_mean", pa.float64(), True),
    ("example_ids", pa.list_(pa.string()), True),
    ("vector", pa.list_(pa.float32()), True),
    ("value", pa.list_(pa.float32()), True),
)

COMPARISONS = _schema(  # first minus second, over the examples that both have
    ("model", pa.string(), False),
    ("model_label", pa.string(), False),
    ("dataset", pa.string(), False),
    ("dataset_label", pa.string(), False),
    ("first", pa.string(), False),  # the suite's name for the editor
    ("first_label", pa.string(), False),
    ("first_variant", pa.string(), False),
    ("second", pa.string(), False),
    ("second_label", pa.string(), False),
    ("second_variant", pa.string(), False),
    ("metric", pa.string(), False),
    ("measure", pa.string(), False),  # the task's main one; loss in place of perplexity
    ("first_value", pa.float64(), False),
    ("second_value", pa.float64(), False),
    ("difference", pa.float64(), False),
    ("low", pa.float64(), True),  # null: there is only one fact
    ("high", pa.float64(), True),
    ("p_facts", pa.float64(), False),  # for other facts under the same seeds
    ("p_seeds", pa.float64(), True),  # for other facts and seeds; null: there is only one seed
    ("p_facts_holm", pa.float64(), False),  # adjusted for all rows
    ("p_seeds_holm", pa.float64(), True),
    ("shown", pa.string(), True),  # for other "seeds", or only for other "facts"; null: not shown
    ("n", pa.int32(), False),  # examples of all seeds
    ("n_facts", pa.int32(), False),
    ("n_seeds", pa.int32(), False),
)
