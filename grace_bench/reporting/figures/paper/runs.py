"""What the paper's figures are made of: a suite's settings, their runs and their curves.

    suite = SuiteRuns(plan, summary, curves)
    suite.of_radius(experiment)  # the settings of each editor that differ in the radius alone

Settings come from the summary; what only a run's own record says comes from its folder.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace_bench.errors import DataError
from grace_bench.reporting.figures.style import Drawing
from grace_bench.reporting.summary.failures import short
from grace_bench.reporting.summary.read import Experiment, Point, Setting, Summary, read_curves
from grace_bench.reporting.summary.run_folder import RunFolder, read_run_folders
from grace_bench.suite.plan import canonical_json


@dataclass(frozen=True)
class PaperFigure(Drawing):
    """A figure that the suite's runs can show.

    Args:
        number: of the paper's figure.
        caption: what it shows, for the report.
        rows: the data, as CSV beside it.
    """

    number: int
    caption: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Missing:
    """A figure that the runs cannot show, and why."""

    number: int
    reason: str


class SuiteRuns:
    """All runs of a suite by setting, failed ones apart."""

    def __init__(self, runs: Path | Sequence[Path], summary: Path, curves: Path) -> None:
        """Read the summary, the curves and every run's record.

        Args:
            runs: folders of one suite's runs, complete or failed, or the path of its plan.json.
            summary: summary.parquet of these runs.
            curves: curves.parquet of these runs.

        Raises:
            DataError: a file is missing or damaged, or they do not belong together.
        """
        self.data = Summary(summary)
        self.curves = read_curves(curves, self.data)
        by_name = {
            (s.experiment.model, s.experiment.dataset, s.editor, s.variant): s
            for s in self.data.settings
        }
        self.runs: dict[Setting, list[RunFolder]] = {s: [] for s in self.data.settings}
        self.failed: dict[Setting, list[RunFolder]] = {s: [] for s in self.data.settings}
        for run in read_run_folders(runs):
            setting = by_name.get((*run.spec.names, run.record.variant))
            if setting is None:
                raise DataError(f"{summary}: lacks the run {run.id}; run the summarise step again.")
            (self.runs if run.failure is None else self.failed)[setting].append(run)
        for setting in (s for s in self.data.settings if not (self.runs[s] or self.failed[s])):
            raise DataError(
                f"{summary}: has runs of {setting.editor_label} on {setting.experiment.title} that "
                "were not given; run the summarise step again."
            )

    def points(self, setting: Setting, metric: str) -> list[Point]:
        """Return the points of a setting's curve that can be drawn."""
        return [p for p in self.curves.of(setting, metric) if p.estimate.is_finite]

    def layer(self, experiment: Experiment) -> str:
        """Return the name of the layer that an experiment edits."""
        return self._model(experiment)["layer"]

    def family(self, experiment: Experiment) -> str:
        """Return a key that experiments share if they differ only in the edited layer."""
        model = self._model(experiment)
        rest = {k: v for k, v in model.items() if k not in ("name", "label", "layer")}
        return canonical_json([experiment.dataset, rest])

    def _model(self, experiment: Experiment) -> dict[str, Any]:
        found = (s for s in self.data.settings if s.experiment == experiment)
        setting = next(found)
        return (self.runs[setting] or self.failed[setting])[0].spec.model.model_dump(mode="json")

    def of_radius(self, experiment: Experiment) -> dict[str, list[Setting]]:
        """Return, by editor, the settings that differ from the configured one only in the radius.

        They are sorted by radius; editors without keys or without a radius are left out.
        """
        found: dict[str, list[Setting]] = {}
        for setting in self.data.settings:
            has_keys = self.curves.of(setting, "n_keys") and "radius" in setting.values
            if setting.experiment == experiment and has_keys:
                found.setdefault(setting.editor, []).append(setting)
        chosen = {}
        for editor, settings in found.items():
            reference = next((s for s in settings if not s.in_sweep), settings[0])
            same = [s for s in settings if others(s) == others(reference)]
            chosen[editor] = sorted(same, key=radius)
        return chosen


def radius(setting: Setting) -> float:
    """Return the deferral radius of new keys."""
    return float(setting.values["radius"])


def others(setting: Setting) -> str:
    """Return all hyperparameters except the radius."""
    return canonical_json({k: v for k, v in setting.values.items() if k != "radius"})


def block_names(layers: Iterable[str]) -> dict[str, str]:
    """Return a short name for each layer: its block's number, if the numbers differ.

    >>> block_names(["encoder.block.2.layer.1.wo", "encoder.block.10.layer.1.wo"])
    {'encoder.block.2.layer.1.wo': 'block 2', 'encoder.block.10.layer.1.wo': 'block 10'}
    """
    layers = sorted(set(layers), key=natural)
    numbers = {layer: re.search(r"(?<=\.)\d+(?=\.)", layer) for layer in layers}
    short = {layer: f"block {m.group()}" if m else layer for layer, m in numbers.items()}
    return short if len(set(short.values())) == len(layers) else {layer: layer for layer in layers}


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key that puts 10 after 9."""
    parts = re.split(r"(\d+)", text)
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]


def common_name(names: Sequence[str]) -> str:
    """Return the common beginning of names, without a cut word or a dangling "block".

    >>> common_name(["t5-small-block-0", "t5-small-block-10"])
    't5-small'
    """
    if len(set(names)) == 1:
        return names[0]
    columns = itertools.takewhile(lambda c: len(set(c)) == 1, zip(*names, strict=False))
    shared = "".join(column[0] for column in columns)
    if any(re.match(r"[A-Za-z0-9]{2}", name[max(0, len(shared) - 1) :]) for name in names):
        shared = re.sub(r"[A-Za-z0-9]+$", "", shared)  # a word with only its start shared
    shared = re.sub(r"[\s,;:(_.-]*(?:(?<![A-Za-z])(?:block|layer|h))?[\s,;:(_.-]*$", "", shared)
    return shared or names[0]


def describe_seeds(settings: Iterable[Setting], suite: SuiteRuns) -> str:
    """Return the number of seeds in a figure, for its caption, and which seeds are not in it."""
    settings = list(settings)
    counts = {len(suite.runs[setting]) for setting in settings} - {0}
    low, high = min(counts, default=0), max(counts, default=0)
    many = f"{low} to {high}" if low < high else str(high)
    seeds = f"{many} seed{'s' if high > 1 else ''}"
    failed = [
        short(s.editor_label, suite.data.failures(s), len(suite.runs[s]))
        for s in settings
        if suite.failed[s]
    ]
    return f"{seeds}; failed and not among them: {', '.join(failed)}" if failed else seeds
