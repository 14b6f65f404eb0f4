"""Per-example measures, each in one place with its formula. Torch-free.

Sources: SQuAD F1 and exact match after Rajpurkar et al. 2016 (lower case, punctuation and
articles dropped, except for marks that make another answer: `normalize_answer`); `f1_released` is
the arithmetic of GRACE's released code.
"""

from __future__ import annotations

import math
import re
import statistics
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Measure:
    """How one prediction is scored against its label."""

    name: str
    label: str  # in tables and figures
    higher_is_better: bool
    definition: str
    per_example: bool = True  # a prediction has a value of its own; else it is of their mean


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("f1", "F1", True, "SQuAD F1 of the text generated until its natural stop"),
        Measure(
            "exact_match",
            "EM",
            True,
            "SQuAD exact match of the text generated likewise",
        ),
        Measure(
            "f1_released",
            "F1 (released)",
            True,
            "released code's F1 over token-id sets",
        ),
        Measure(
            "token_accuracy",
            "Token acc.",
            True,
            "label tokens that are the argmax, forced",
        ),
        Measure("accuracy", "Acc.", True, "class predicted is the label"),
        Measure("loss", "NLL", False, "mean negative log-likelihood of the label's tokens"),
        Measure("perplexity", "PPL", False, "exp of the loss; arithmetic mean over examples"),
        Measure("perplexity_median", "PPL (median)", False, "median over examples", False),
        Measure("perplexity_log_mean", "PPL (log-mean)", False, "exp of the mean loss", False),
    )
}
PER_EXAMPLE = tuple(name for name, measure in MEASURES.items() if measure.per_example)
"""A prediction has a value of those that its task defines, else null."""


@dataclass(frozen=True)
class Metric:
    """Which predictions are averaged, and when (GRACE, section 3.1)."""

    name: str
    label: str
    role: str  # of the averaged predictions
    definition: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric("es", "ES", "edit", "edit success: each edit, right after it was made"),
        Metric("err", "ERR", "edits", "edit retention: all past edits, at a probe"),
        Metric("trr", "TRR", "upstream", "test retention: upstream examples, at a probe"),
        Metric(
            "arr",
            "ARR",
            "accurate",
            "accurate retention: outputs that were right before",
        ),
        Metric("holdout", "Holdout", "holdout", "other phrasings and texts of the edited facts"),
    )
}


def aggregate(losses_or_scores: Sequence[float], measure: str) -> float:
    """Return the mean of a measure over examples; NaN where there are none.

    `perplexity_median` and `perplexity_log_mean` take per-example *losses*: the arithmetic mean
    of perplexities is decided by outliers, these two are not.
    """
    if len(losses_or_scores) == 0:
        return math.nan
    if measure == "perplexity_median":
        return perplexity(statistics.median(losses_or_scores))
    if measure == "perplexity_log_mean":
        return perplexity(statistics.fmean(losses_or_scores))
    return statistics.fmean(losses_or_scores)


_ARTICLES = frozenset({"a", "an", "the"})
_TYPOGRAPHIC = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    | {"\u2026": "..."}
)
_THOUSANDS = re.compile(r"(?<!\d{4})(?<=\d),(?=\d{3}(?!\d))")
_MARK = re.compile(
    r"((?<=\d)[^\w\s](?=\d)"  # between digits: 1.5, 10:30, 1-2
    r"|(?<!\w)[-+](?=\.?\d)"  # signs: -5
    r"|(?<=[\w+])[+#]"  # C++, C#, A+
    r"|\+(?=\d)"  # UTC+1
    r"|(?<![\w.])\.(?=\w))"  # .at, .5
    rf"|[{re.escape(string.punctuation)}]"
)


def normalize_answer(text: str) -> str:
    """Lower the case, drop punctuation and articles, and collapse white space (SQuAD).

    Unlike SQuAD's, it keeps marks without which an answer is another one: points, signs and other
    marks in numbers (a comma between thousands goes), the plus and hash of "C++" and "C#", the
    point that begins a name (".at"). Typographic quotes and dashes are those of ASCII.

    >>> normalize_answer("The  Hague!")
    'hague'
    >>> normalize_answer("about \u22121,500.50 (C++)")
    'about -1500.50 c++'
    """
    text = unicodedata.normalize("NFC", text).translate(_TYPOGRAPHIC).lower()
    text = _MARK.sub(lambda mark: mark[1] or "", _THOUSANDS.sub("", text))
    return " ".join(word for word in text.split() if word not in _ARTICLES)


def exact_match(prediction: str, answer: str) -> float:
    """Return 1 if the normalised texts are equal, else 0.

    Where nothing is left of one of them ("A", "?"), they are compared as they stand, in lower case.
    """
    predicted, wanted = normalize_answer(prediction), normalize_answer(answer)
    if not predicted or not wanted:
        predicted, wanted = prediction.lower().split(), answer.lower().split()
    return float(predicted == wanted)


def squad_f1(prediction: str, answer: str) -> float:
    """Return F1 = 2PR / (P + R) over the multisets of normalised words.

    Where nothing is left of one of them, it is the exact match.
    """
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not wanted:
        return exact_match(prediction, answer)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def f1_released(predicted_ids: Sequence[int], label_ids: Sequence[int]) -> float:
    """Return the F1 that GRACE's released code computes, its quirks included.

    The overlap is that of token-id *sets*, while precision and recall divide by lengths with
    duplicates; the end-of-sequence token counts on both sides, so a wrong answer of three tokens
    still scores .25, and an exact one with a repeated token scores less than 1. Where the
    released code falls into its bare except (an empty side, or a prediction of the
    end-of-sequence token alone, squeezed to a scalar without a length), it scores 0, as here.
    """
    if len(predicted_ids) < 2 or not label_ids:
        return 0.0
    common = len(set(predicted_ids) & set(label_ids))
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted_ids), common / len(label_ids)
    return 2 * precision * recall / (precision + recall)


def perplexity(loss: float) -> float:
    """Return exp(mean negative log-likelihood); infinity where it overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
