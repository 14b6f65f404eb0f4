"""The paper's Fig. 5: which key answers each held-out phrasing, over time and by initial radius."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from grace_bench.reporting.figures.curves import count_edits, legend_below
from grace_bench.reporting.figures.paper.runs import (
    Missing,
    PaperFigure,
    SuiteRuns,
    describe_seeds,
    radius,
)
from grace_bench.reporting.figures.style import PAGE, ordered_tints
from grace_bench.reporting.summary.read import Setting
from grace_bench.reporting.summary.run_folder import RunFolder

SHARES = {  # of holdouts, by who answers them
    "own": ("a key of its own fact", "#0072B2"),
    "other": ("a key of another fact", "#E69F00"),
    "none": ("no key", "#d9d9d9"),
}
TOO_OLD = "its runs were made before predictions named the key that answered; make them again."
NO_HOLDOUT = "the data set has no holdout of edited facts."
FEWEST_ANSWERED = 5
"""Fewer answered phrasings make no picture."""

MANY_DOTS = 2000
"""With more dots than this, a panel is a picture within the PDF."""


@dataclass
class Answers:
    """Which keys answered the holdouts at one probe of one run.

    Args:
        n_edits: number of edits made so far.
        n_keys: number of keys in the codebook.
        holdouts: number of holdouts of edited facts.
        own: number answered by a key that an edit of the same fact uses.
        by_key: number that each key answers.
    """

    n_edits: int
    n_keys: int
    holdouts: int = 0
    own: int = 0
    by_key: Counter[int] = field(default_factory=Counter)

    @property
    def answered(self) -> int:
        """Number of holdouts that any key answers."""
        return self.by_key.total()

    def share(self, who: str) -> float:
        """Return the share of holdouts answered by `own`, `other` or `none`."""
        counts = {"own": self.own, "other": self.answered - self.own}
        return counts.get(who, self.holdouts - self.answered) / self.holdouts

    @property
    def per_key(self) -> float:
        """Mean number of holdouts per key that answers any; 0 if none does."""
        return self.answered / len(self.by_key) if self.by_key else 0.0

    @property
    def most(self) -> int:
        """Number of holdouts that the busiest key answers."""
        return max(self.by_key.values(), default=0)


def answers_of(run: RunFolder) -> list[Answers] | None:
    """Return which keys answered the holdouts at each probe of a run, in the order of the edits.

    None: the run is of a version that did not record the answering key.

    Raises:
        DataError: a file of the run is missing or damaged.
    """
    steps = run.table("steps.parquet", ("n_edits", "edited", "fact_id", "key", "n_keys"))
    found = run.table("predictions.parquet", ("n_edits", "role", "fact_id", "key"))
    if found["key"].null_count == found.num_rows and steps["key"].null_count < steps.num_rows:
        return None  # each edit's own prediction would name its key
    n_keys: dict[int, int] = {}
    facts: dict[int, dict[str, int]] = defaultdict(dict)  # of a key: fact -> first edit
    columns = [steps[name].to_pylist() for name in steps.column_names]
    for n_edits, edited, fact, key, keys in zip(*columns, strict=True):
        n_keys[n_edits] = keys or 0
        if edited and key is not None:
            facts[key].setdefault(fact, n_edits)
    probes: dict[int, Answers] = {}
    columns = [found[name].to_pylist() for name in found.column_names]
    for n_edits, role, fact, key in zip(*columns, strict=True):
        if role != "holdout" or n_edits == 0:
            continue
        if n_edits not in probes:
            probes[n_edits] = Answers(n_edits, n_keys.get(n_edits, 0))
        probe = probes[n_edits]
        probe.holdouts += 1
        if key is not None:
            probe.by_key[key] += 1
            probe.own += facts[key].get(fact, n_edits + 1) <= n_edits
    return [probes[n] for n in sorted(probes)]


@dataclass(frozen=True)
class _Answered:
    """All seeds of one setting."""

    setting: Setting
    seeds: list[list[Answers]]

    def shared(self) -> list[list[Answers]]:
        """Return the answers of all seeds, for each number of edits at which all were probed."""
        by_edits = [{a.n_edits: a for a in seed} for seed in self.seeds]
        common = sorted(set.intersection(*map(set, by_edits)))
        return [[seed[n] for seed in by_edits] for n in common]

    def last(self) -> list[Answers]:
        """Return each seed's last probe."""
        return [seed[-1] for seed in self.seeds]


def figure_5(suite: SuiteRuns) -> Iterator[PaperFigure | Missing]:
    """Yield, for each experiment and editor with keys, which key answers each holdout."""
    seen = False
    for experiment in suite.data.experiments:
        for editor, settings in suite.of_radius(experiment).items():
            seen = True
            title = f"{settings[0].editor_label} on {experiment.title}"
            answered: list[_Answered] = []
            without: dict[str, list[str]] = {}
            for setting in settings:
                seeds = [answers_of(run) for run in suite.runs[setting]]
                if all(seeds):
                    answered.append(_Answered(setting, [seed for seed in seeds if seed]))
                else:
                    reason = TOO_OLD if None in seeds else NO_HOLDOUT
                    without.setdefault(reason, []).append(f"{radius(setting):g}")
            for reason, radii in without.items():
                yield Missing(5, f"{title}, radius {', '.join(radii)}: {reason}")
            if not answered:
                continue
            most = max(a.answered for one in answered for seed in one.seeds for a in seed)
            if most < FEWEST_ANSWERED:
                yield Missing(5, f"{title}: keys answer {most} held-out phrasings at most.")
                continue
            name = f"fig5-{experiment.model}-{experiment.dataset}"
            shown = _shown(answered)
            yield PaperFigure(
                number=5,
                name=name + ("" if editor == "grace" else f"-{editor}"),
                caption=f"Which key answers each held-out phrasing of an edited fact: {title}. "
                f"Upper left: radius {radius(shown.setting):g}, one seed. Bands: from the lowest "
                f"to the highest seed, {describe_seeds([t.setting for t in answered], suite)}.",
                size=(PAGE, 4.6),
                draw=partial(draw_keys, answered=answered, title=title),
                rows=list(_rows(suite, answered)),
            )
    if not seen:
        yield Missing(5, "no editor with keys and a radius was run.")


def _shown(answered: Sequence[_Answered]) -> _Answered:
    """Return the setting whose keys are shown one by one: the configured one, if any answers."""
    answering = [t for t in answered if any(a.answered for a in t.seeds[0])] or list(answered)
    return next((t for t in answering if not t.setting.in_sweep), answering[-1])


def draw_keys(figure: Figure, answered: Sequence[_Answered], title: str) -> None:
    """Draw keys one by one, holdouts a key, the share answered, and the end by radius."""
    (keys, per_key), (share, final) = figure.subplots(2, 2)
    tints = ordered_tints(len(answered))
    _draw_dots(keys, _shown(answered))
    _draw_lines(per_key, answered, tints, lambda a: a.per_key)
    _draw_lines(per_key, answered, tints, lambda a: a.most, linestyle="--", band=False)
    per_key.set_title("holdouts of a key that answers any\n(dashed: of the fullest key)")
    per_key.set_ylabel("holdouts per key")
    per_key.set_ylim(bottom=0)
    _draw_lines(share, answered, tints, lambda a: 1 - a.share("none"))
    share.set_title("holdouts that any key answers")
    share.set_ylabel("share of holdouts")
    share.set_ylim(-0.03, 1.03)
    _draw_shares(final, answered)
    for axes in (keys, per_key, share):
        count_edits(axes, n_ticks=5)
    figure.suptitle(title, fontsize=9.5)
    handles: list[Any] = [
        Line2D([], [], color=tint, label=f"radius {radius(t.setting):g}")
        for t, tint in zip(answered, tints, strict=True)
    ]
    handles += [Patch(color=tint, label=label) for label, tint in SHARES.values()]
    legend_below(figure, handles, columns=6)


def _draw_dots(axes: Axes, one: _Answered) -> None:
    """Draw a dot for each key that answers holdouts at a probe, as large as it answers many."""
    dots = [(a.n_edits, key, n) for a in one.seeds[0] for key, n in sorted(a.by_key.items())]
    size = f"{radius(one.setting):g}"
    axes.set_title(f"keys that answer, radius {size}\n(area: how many holdouts; dotted: keys made)")
    axes.set_ylabel("key, in the order made")
    last = one.seeds[0][-1]
    axes.set_xlim(0, last.n_edits * 1.04)
    axes.set_ylim(-0.04 * last.n_keys - 0.5, 1.04 * last.n_keys)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    probes = [a.n_edits for a in one.seeds[0]]
    axes.plot(probes, [a.n_keys for a in one.seeds[0]], color="black", linestyle=":", linewidth=1)
    if dots:
        x, y, counts = zip(*dots, strict=True)
        largest = max(counts)
        axes.scatter(
            x,
            y,
            s=[1.5 + 40 * n / largest for n in counts],
            color=SHARES["own"][1],
            alpha=0.45,
            linewidths=0,
            rasterized=len(dots) > MANY_DOTS,
        )


def _draw_lines(
    axes: Axes,
    answered: Sequence[_Answered],
    tints: Sequence[str],
    value: Callable[[Answers], float],
    linestyle: str = "-",
    band: bool = True,
) -> None:
    for one, tint in zip(answered, tints, strict=True):
        probes = one.shared()
        x = [seeds[0].n_edits for seeds in probes]
        values = [[value(a) for a in seeds] for seeds in probes]
        axes.plot(x, [fmean(v) for v in values], color=tint, linestyle=linestyle, marker=".", ms=3)
        if band:
            low, high = [min(v) for v in values], [max(v) for v in values]
            axes.fill_between(x, low, high, color=tint, alpha=0.15, linewidth=0)


def _draw_shares(axes: Axes, answered: Sequence[_Answered]) -> None:
    """Draw who answers after all edits, a bar a radius, and the number of keys above it."""
    bottom = [0.0] * len(answered)
    for who, (_, tint) in SHARES.items():
        heights = [fmean(a.share(who) for a in one.last()) for one in answered]
        axes.bar(range(len(answered)), heights, 0.6, bottom=bottom, color=tint)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    for place, one in enumerate(answered):
        keys = fmean(a.n_keys for a in one.last())
        axes.annotate(
            f"{keys:.0f} keys", (place, 1.0), (0, 2), textcoords="offset points",
            ha="center", va="bottom", fontsize=6.5,
        )  # fmt: skip
    asked = fmean(a.holdouts for one in answered for a in one.last())
    axes.set_title(f"who answers after all edits ({asked:.0f} holdouts)", pad=12)
    axes.set_ylabel("share of holdouts")
    axes.set_xlabel("initial radius")
    axes.set_xlim(-0.6, len(answered) - 0.4)
    axes.set_ylim(0, 1)
    axes.set_xticks(range(len(answered)), [f"{radius(one.setting):g}" for one in answered])
    axes.grid(visible=False)


def _rows(suite: SuiteRuns, answered: Sequence[_Answered]) -> Iterator[dict[str, Any]]:
    """Yield one row for each key that answers holdouts, and one for those that none answers."""
    for one in answered:
        setting, experiment = one.setting, one.setting.experiment
        for run, seed in zip(suite.runs[setting], one.seeds, strict=True):
            for probe in seed:
                common = {
                    "model": experiment.model,
                    "layer": suite.layer(experiment),
                    "dataset": experiment.dataset,
                    "editor": setting.editor,
                    "radius": radius(setting),
                    "seed": run.spec.seed,
                    "n_edits": probe.n_edits,
                    "n_keys": probe.n_keys,
                    "n_holdouts": probe.holdouts,
                    "n_answered_by_own_fact": probe.own,
                }
                for key, count in sorted(probe.by_key.items()):
                    yield {**common, "key": key, "answers": count}
                yield {**common, "key": None, "answers": probe.holdouts - probe.answered}
