"""One difference between two editors: what it is called, and what it says in plain words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.comparison.paired import ALPHA

PHRASES = {
    "es": "gets {} of its edits right at once",
    "err": "keeps {} of its past edits",
    "trr": "keeps {} of the upstream answers",
    "arr": "keeps {} of the outputs that were right",
    "holdout": "gets {} of the other phrasings right",
}
"""What a higher share means, by metric."""


@dataclass(frozen=True)
class Difference:
    """A row of comparisons.parquet, whose columns are its fields."""

    model: str
    model_label: str
    dataset: str
    dataset_label: str
    first: str
    first_label: str
    first_variant: str
    second: str
    second_label: str
    second_variant: str
    metric: str
    measure: str
    first_value: float
    second_value: float
    difference: float
    low: float | None
    high: float | None
    p_facts: float
    p_seeds: float | None
    p_facts_holm: float
    p_seeds_holm: float | None
    shown: str | None
    n: int
    n_facts: int
    n_seeds: int

    @property
    def title(self) -> str:
        """The experiment, as tables and figures call it."""
        return f"{self.dataset_label}, {self.model_label}"

    @property
    def label(self) -> str:
        """The metric with its measure: "TRR (F1)"."""
        return f"{METRICS[self.metric].label} ({MEASURES[self.measure].label})"

    @property
    def words(self) -> str:
        """The effect as a sentence.

        GRACE keeps 12 points more of its past edits than FT (95% interval 8 to 15 points).
        """
        measure = MEASURES[self.measure]
        is_share = measure.scale == "share"
        if self.shown is None and 2 ** (1 - self.n_facts) > ALPHA:  # the smallest p of the flips
            facts = f"{self.n_facts} fact{' is' if self.n_facts == 1 else 's are'}"
            who = f"{self.first_label} and {self.second_label}"
            return f"{facts} too few to tell {who} apart in {self.label}{self._interval(1)}."
        if self.shown is None:
            who = f"{self.first_label} and {self.second_label}"
            after = " after Holm's correction" if self.p_facts < ALPHA else ""
            return (
                f"No difference between {who} is shown in {self.label}{after}{self._interval(1)}."
            )
        size, more = _plain(abs(self.difference), is_share), self.difference > 0
        if is_share and measure.higher_is_better:
            phrase = PHRASES[self.metric].format(f"{size} {'more' if more else 'less'}")
            text = f"{self.first_label} {phrase} than {self.second_label}"
        else:
            higher = f"{size} {'higher' if more else 'lower'}"
            text = f"{self.first_label}'s {self.label} is {higher} than {self.second_label}'s"
        if self.shown == "facts":
            text += (
                " under this seed" if self.n_seeds == 1 else f" under these {self.n_seeds} seeds"
            )
            text += "; others may differ"
        return f"{text}{self._interval(1 if more else -1)}."

    def _interval(self, sign: int) -> str:
        if self.low is None or self.high is None:
            return ""
        is_share = MEASURES[self.measure].scale == "share"
        low, high = sorted((sign * self.low, sign * self.high))
        ends = f"{_plain(low, is_share, '')} to {_plain(high, is_share)}"
        return f" (95% interval {ends})"


def _plain(value: float, is_share: bool, unit: str = " points") -> str:
    """Return a share in points, one decimal where it says something, or another value."""
    if not is_share:
        return f"{value:.3g}"
    return f"{round(100 * value, 1) + 0.0:g}{unit}"


def by_experiment(differences: Iterable[Difference]) -> list[tuple[str, list[Difference]]]:
    """Return each experiment's title and differences; an experiment's stand after one another."""
    groups = itertools.groupby(differences, key=lambda one: one.title)
    return [(title, list(members)) for title, members in groups]
