"""Measure how often intervals of differences cover, and how often tests reject where nothing is.

    python workflow/scripts/calibrate_comparison.py    # a quarter of an hour

It fills docs/concepts/statistics.md. Two editors are simulated that are alike: binary scores whose
chance depends on the fact, the seed, and how each editor gets on with that fact and that seed.
"Other seeds" draws the latter anew for each editor, so that they are alike in the mean over all
seeds. "Same seeds" gives both the same values in another order: they are alike over just these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from pages import DOCS, replace_block, table
from scipy.stats import norm

from grace_bench.reporting.comparison.paired import ALPHA, paired_difference
from grace_bench.reporting.comparison.ranks import ENOUGH, critical_difference, friedman_p
from grace_bench.reporting.summary.comparison import paired_replicates
from grace_bench.reporting.summary.statistics import interval

PAGE = DOCS / "concepts" / "statistics.md"
MEAN = 0.5
FACT, SEED, EDITOR_FACT, NOISE = 1.0, 0.3, 0.3, 1.0
"""Standard deviations of what lies behind a score; right is what comes out positive."""

EDITOR_SEED = (0.0, 0.1, 0.4)
SEEDS = (2, 3, 5)
STREAMS = {100: 1000, 1000: 500}
"""Facts, and the number of simulated streams."""

RANKED = (3, 5, 8)  # editors
RANKINGS = 4000


def points(editor_seed: float) -> float:
    """Return the standard deviation of an editor's true score between seeds, in points."""
    whole = math.sqrt(FACT**2 + SEED**2 + EDITOR_FACT**2 + NOISE**2 + editor_seed**2)
    return 100 * float(norm.pdf(MEAN / whole)) * editor_seed / whole


def simulate(
    generator: np.random.Generator, facts: int, seeds: int, editor_seed: float, same_seeds: bool
) -> np.ndarray:
    """Return the difference between two editors that are alike, (seeds, facts)."""
    common = MEAN + generator.normal(0, FACT, facts)
    own = generator.normal(0, editor_seed, (2, seeds, 1))
    if same_seeds:
        own[1] = np.roll(own[0], 1, axis=0)
    else:
        common = common + generator.normal(0, SEED, (seeds, 1))
    latent = common + own + generator.normal(0, EDITOR_FACT, (2, 1, facts))
    right = latent + generator.normal(0, NOISE, (2, seeds, facts)) > 0
    return right[0].astype(float) - right[1]


def measure(facts: int, seeds: int, editor_seed: float, streams: int) -> dict[str, float]:
    """Return the shares of streams in which an interval covers, or a test rejects."""
    generator = np.random.default_rng([facts, seeds, round(1000 * editor_seed)])
    names = np.array([f"fact-{n}" for n in range(facts)], dtype=object)
    found: dict[str, list[bool]] = {}
    for stream in range(streams):
        key = f"stream-{stream}"
        for same_seeds in (False, True):
            differences = simulate(generator, facts, seeds, editor_seed, same_seeds)
            by_seed = [(names, values) for values in differences]
            result = paired_difference(by_seed, key)
            if same_seeds:
                found.setdefault("facts, same seeds", []).append(result.p_facts < ALPHA)
                continue
            low, high = interval(paired_replicates([by_seed], key)[0])
            found.setdefault("bootstrap", []).append(low <= 0 <= high)
            found.setdefault("interval", []).append(result.low <= 0 <= result.high)
            found.setdefault("facts, other seeds", []).append(result.p_facts < ALPHA)
            found.setdefault("seeds", []).append(result.p_seeds < ALPHA)
    return {name: float(np.mean(values)) for name, values in found.items()}


def rows() -> Iterable[list[str]]:
    """Yield the rows of the calibration table."""
    for facts, streams in STREAMS.items():
        for seeds in SEEDS:
            for editor_seed in EDITOR_SEED:
                found = measure(facts, seeds, editor_seed, streams)
                cells = [f"{100 * share:.1f}" for share in found.values()]
                yield [str(facts), str(seeds), f"{points(editor_seed):.0f}", *cells]


def ranking_rows() -> Iterable[list[str]]:
    """Yield the rows on ranks: how often tests reject if all editors rank at random."""
    generator = np.random.default_rng(0)
    for editors in RANKED:
        critical, rejected, apart = critical_difference(editors, ENOUGH), 0, 0
        for _ in range(RANKINGS):
            ranks = 1 + generator.permuted(np.tile(np.arange(editors), (ENOUGH, 1)), axis=1)
            is_rejected = friedman_p(ranks) < ALPHA
            rejected += is_rejected
            apart += is_rejected and np.ptp(ranks.mean(axis=0)) >= critical
        yield [str(editors), *(f"{100 * n / RANKINGS:.1f}" for n in (rejected, apart))]


def main() -> None:
    """Fill the page."""
    header = ["facts", "seeds", "seeds' spread", "bootstrap covers", "interval covers"]
    header += ["`p_facts`, other seeds", "`p_seeds`", "`p_facts`, same seeds"]
    replace_block(PAGE, "calibration", table(header, rows(), "--:"))
    header = ["editors", "Friedman's test", "any two told apart"]
    replace_block(PAGE, "ranks", table(header, ranking_rows(), "--:"))


if __name__ == "__main__":
    main()
