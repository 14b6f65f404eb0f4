"""Measures and metrics, each in one place with its formula. Torch-free.

A measure scores one prediction; a metric says which predictions are averaged, and when. Parquet
columns, summaries, tables, figures and MLflow metrics all follow from the entries here. Other
packages add measures through an entry point:

    [project.entry-points."grace_bench.measures"]
    my_measure = "my_package.measures:MEASURE"

Sources: SQuAD F1 and exact match after Rajpurkar et al. 2016 (lower case, punctuation and
articles dropped, except for marks that change the answer: `normalize_answer`); `f1_released` is the
arithmetic of GRACE's released code.
"""

from __future__ import annotations

import math
import re
import statistics
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from grace_bench.errors import ConfigError
from grace_bench.registry import Registry


@dataclass(frozen=True)
class Answer:
    """What a measure sees of one prediction.

    Args:
        text: the generated text, or the name of the predicted class.
        accepted: all right answers, the row's label first.
        is_class: whether `text` names a class.
        ids: the generated token ids; empty for a class.
        label_ids: the label's token ids; empty for a class.
    """

    text: str
    accepted: Sequence[str]
    is_class: bool = False
    ids: Sequence[int] = ()
    label_ids: Sequence[int] = ()


@dataclass(frozen=True)
class Measure:
    """How one prediction is scored against its label, and how scores are averaged and shown.

    Args:
        name: of its Parquet column and in all records.
        label: in tables and figures.
        higher_is_better: its direction.
        definition: its formula in words, for captions.
        score: computes it from an answer; None: the task computes it from the model's output.
        scores: the answers that `score` applies to.
        of: the column that it averages; empty: its own. A measure of another column has no
            value per example.
        beside: a column without which it is not averaged, as only some tasks call for it.
        average: how examples are averaged.
        exponential: whether it is exp(the average).
        scale: of a figure's axis. A share lies between 0 and 1.
        digits: significant digits in tables.
        unit: of its values; empty: none.
    """

    name: str
    label: str
    higher_is_better: bool
    definition: str
    score: Callable[[Answer], float] | None = None
    scores: Literal["texts", "classes", "both"] = "texts"
    of: str = ""
    beside: str = ""
    average: Literal["mean", "median"] = "mean"
    exponential: bool = False
    scale: Literal["share", "linear", "log"] = "share"
    digits: int = 3
    unit: str = ""

    @property
    def column(self) -> str:
        """The Parquet column whose values are averaged."""
        return self.of or self.name

    @property
    def title(self) -> str:
        """The label with its unit, if it has one."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def arrow(self) -> str:
        """An arrow that points to better values."""
        return "\u2191" if self.higher_is_better else "\u2193"

    def applies_to(self, answer: Answer) -> bool:
        """Whether it is computed from this answer."""
        kinds = ("both", "classes" if answer.is_class else "texts")
        return self.score is not None and self.scores in kinds


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
        Metric("arr", "ARR", "accurate", "accurate retention: outputs that were right before"),
        Metric("holdout", "Holdout", "holdout", "other phrasings and texts of the edited facts"),
    )
}


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

    Unlike SQuAD's, it keeps marks that change the answer: points, signs and other marks in numbers
    (except for a comma between thousands), the plus and hash of "C++" and "C#", and the point at
    the start of a name (".at"). Typographic quotes and dashes become ASCII.

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

    If nothing is left of one of them ("A", "?"), they are compared unnormalised, in lower case.
    """
    predicted, wanted = normalize_answer(prediction), normalize_answer(answer)
    if not predicted or not wanted:
        predicted, wanted = (" ".join(text.lower().split()) for text in (prediction, answer))
    return float(predicted == wanted)


def squad_f1(prediction: str, answer: str) -> float:
    """Return F1 = 2PR / (P + R) over the multisets of normalised words.

    If nothing is left of one of them, it is the exact match.
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
    duplicates. The end-of-sequence token counts on both sides, so a wrong answer of three tokens
    still scores .25, and an exact one with a repeated token scores less than 1. If the released
    code runs into its bare except (an empty side, or a prediction of the end-of-sequence token
    alone, squeezed to a scalar without a length), it scores 0, as here.
    """
    if len(predicted_ids) < 2 or not label_ids:
        return 0.0
    common = len(set(predicted_ids) & set(label_ids))
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted_ids), common / len(label_ids)
    return 2 * precision * recall / (precision + recall)


def perplexity(loss: float) -> float:
    """Return exp(mean negative log-likelihood); infinity if it overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _best(score: Callable[[str, str], float]) -> Callable[[Answer], float]:
    return lambda answer: max(score(answer.text, accepted) for accepted in answer.accepted)


class Measures(Mapping[str, Measure]):
    """All measures by name: those of this module in their order, then those of other packages.

    Other packages are imported on first use, not when this module is imported.
    """

    def __init__(self, *own: Measure) -> None:
        self.own = {measure.name: measure for measure in own}
        self.added: Registry[Measure] = Registry("measure", "", "", "grace_bench.measures")

    @cached_property
    def _all(self) -> dict[str, Measure]:
        found = dict(self.own)
        for name in self.added.names():
            measure = self.added.get(name)
            if not isinstance(measure, Measure) or measure.name != name or name in found:
                raise ConfigError(
                    f"the entry point '{name}' of grace_bench.measures must name a Measure called "
                    f"'{name}', and no measure of that name may exist; fix or uninstall its "
                    "package."
                )
            found[name] = measure
        return found

    def __getitem__(self, name: str) -> Measure:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


MEASURES = Measures(
    Measure(
        "f1",
        "F1",
        True,
        "SQuAD F1 of the text generated until its natural stop",
        score=_best(squad_f1),
    ),
    Measure(
        "exact_match",
        "EM",
        True,
        "SQuAD exact match of the text generated likewise",
        score=_best(exact_match),
    ),
    Measure(
        "f1_released",
        "F1 (released)",
        True,
        "released code's F1 over token-id sets",
        score=lambda answer: f1_released(answer.ids, answer.label_ids),
    ),
    Measure("token_accuracy", "Token acc.", True, "label tokens that are the argmax, forced"),
    Measure(
        "accuracy",
        "Acc.",
        True,
        "class predicted is the label",
        score=lambda answer: float(answer.text == answer.accepted[0]),
        scores="classes",
    ),
    Measure(
        "loss", "NLL", False, "mean negative log-likelihood of the label's tokens", scale="linear"
    ),
    Measure(
        "perplexity", "PPL", False, "exp of the loss; arithmetic mean over examples", scale="log"
    ),
    # Unlike the arithmetic mean of perplexities, these two are robust to outliers.
    Measure(
        "perplexity_median",
        "PPL (median)",
        False,
        "median over examples",
        of="loss",
        beside="perplexity",
        average="median",
        exponential=True,
        scale="log",
    ),
    Measure(
        "perplexity_log_mean",
        "PPL (log-mean)",
        False,
        "exp of the mean loss",
        of="loss",
        beside="perplexity",
        exponential=True,
        scale="log",
    ),
)


def per_example() -> tuple[str, ...]:
    """Return the measures that a prediction has a value of its own for: columns of Parquet files.

    A prediction has a value of those that its task defines, else null.
    """
    return tuple(name for name, measure in MEASURES.items() if not measure.of)


def averaged(columns: Iterable[str]) -> list[Measure]:
    """Return the measures that can be averaged where predictions have these columns."""
    known = set(columns)
    return [m for m in MEASURES.values() if {m.column, m.beside or m.column} <= known]


def score(answer: Answer) -> dict[str, float]:
    """Return an answer's value of every measure that is computed from answers."""
    return {
        measure.name: float(measure.score(answer))
        for measure in MEASURES.values()
        if measure.score is not None and measure.applies_to(answer)
    }


def aggregate(values: Sequence[float], measure: str) -> float:
    """Return a measure's average over examples, from their values of its column; NaN without any.

    >>> round(aggregate([0.0, 0.0, 3.0], "perplexity_log_mean"), 3)
    2.718
    """
    if len(values) == 0:
        return math.nan
    known = MEASURES[measure]
    average = (statistics.median if known.average == "median" else statistics.fmean)(values)
    return perplexity(average) if known.exponential else average
