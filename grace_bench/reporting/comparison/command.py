"""Compare two editors of a suite: text for the terminal, and files.

    found = compare_editors(Path("results/default/plan.json"), "grace", "ft")
    print(found.text)
    found.write(Path("results/default/comparisons"))

All differences between the two are one family of tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grace_bench.errors import ConfigError, DataError, unknown_name
from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.comparison.differences import Difference, by_experiment
from grace_bench.reporting.comparison.runs import Contestant, compare, corrected, setting_label
from grace_bench.reporting.figures.kinds.comparison import forest
from grace_bench.reporting.figures.style import draw
from grace_bench.reporting.summary.run_folder import RunFolder, read_planned_runs, suite_provenance
from grace_bench.reporting.tables.kinds.comparison import comparison_table, signed
from grace_bench.reporting.tables.table import number, to_csv, to_latex, to_markdown
from grace_bench.reporting.tables.write import provenance_comment
from grace_bench.store import files
from grace_bench.store.json_records import read_record
from grace_bench.store.records import Plan, PlanEntry

BySetting = dict[str, list[PlanEntry]]
"""By experiment ("model/dataset"), the seeds of the one setting that a name means there."""


@dataclass(frozen=True)
class PairComparison:
    """All differences between two editors.

    Args:
        name: of its files.
        differences: by experiment, then metric.
        left_out: a sentence for each experiment without a difference.
        provenance: of the runs.
    """

    name: str
    differences: Sequence[Difference]
    left_out: Sequence[str]
    provenance: Mapping[str, str]

    @property
    def text(self) -> str:
        """What the terminal shows: numbers, and each effect in words."""
        first = self.differences[0]
        width = max(len(first.first_label), len(first.second_label), 5)
        lines = []
        for title, members in by_experiment(self.differences):
            header = f"{first.first_label:>{width}}  {first.second_label:>{width}}"
            lines += [title, f"  {'':16}  {header}  difference         p: facts  seeds"]
            for one in members:
                values = (number(v, one.measure) for v in (one.first_value, one.second_value))
                ends = ", ".join(
                    signed(e, one.measure) for e in (one.low, one.high) if e is not None
                )
                seeds = "--" if one.p_seeds_holm is None else f"{one.p_seeds_holm:.4f}"
                lines.append(
                    f"  {one.label:16}  {'  '.join(f'{value:>{width}}' for value in values)}  "
                    f"{signed(one.difference, one.measure):5} {f'[{ends}]':14} "
                    f"{one.p_facts_holm:.4f}  {seeds}"
                )
            lines += [*(f"  {one.words}" for one in members), ""]
        table = comparison_table(self.differences, self.name, len(self.differences))
        notes = [
            f"p: after Holm's correction over {len(self.differences)} differences; facts: for "
            "other facts under these seeds; seeds: for other facts and seeds.",
            table.caption,
        ]
        return "\n".join([*lines, *notes, *self.left_out])

    def write(self, folder: Path) -> list[Path]:
        """Write the table as LaTeX, Markdown and CSV, and the forest plot; return the paths."""
        table = comparison_table(self.differences, f"comparison-{self.name}", len(self.differences))
        words = "".join(f"- {one.title}: {one.words}\n" for one in self.differences)
        texts = {
            "tex": f"{provenance_comment(self.provenance)}\n{to_latex(table)}",
            "md": f"{to_markdown(table)}\n{words}",
            "csv": to_csv([table]),
        }
        paths = [folder / f"{self.name}.{kind}" for kind in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            with files.atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        panels = {
            f"{title} ({MEASURES[members[0].measure].label})": [
                (METRICS[one.metric].label, one) for one in members
            ]
            for title, members in by_experiment(self.differences)
        }
        first = self.differences[0]
        title = f"{first.first_label} minus {first.second_label}"
        return [*paths, *draw(forest(self.name, title, panels), folder, self.provenance)]


def compare_editors(plan: Path, first: str, second: str) -> PairComparison:
    """Compare two editors of a plan on each model and data set that both were run on.

    Args:
        plan: plan.json of the suite.
        first: an editor's name or label, for the configured setting; else EDITOR/VARIANT, or as
            tables show it, LABEL (VARIANT).
        second: another one.

    Raises:
        ConfigError: a name is unknown or means several settings, or both are the same.
        DataError: a file is missing or damaged, or the two cannot be paired.
    """
    entries = read_record(plan, Plan).runs
    chosen = [_chosen(entries, name, plan) for name in (first, second)]
    if any(chosen[0].get(experiment) == seeds for experiment, seeds in chosen[1].items()):
        raise ConfigError(f"'{first}' and '{second}' are the same editor; give two.")
    rows, left_out, runs = [], [], []
    for experiment in dict.fromkeys([*chosen[0], *chosen[1]]):
        seeds = [found.get(experiment) for found in chosen]
        if None in seeds:
            missing = first if seeds[0] is None else second
            left_out.append(f"{experiment}: left out, as {missing} was not run on it.")
            continue
        both = read_planned_runs([*seeds[0], *seeds[1]])
        runs += both
        found = compare(*_contestants([both[: len(seeds[0])], both[len(seeds[0]) :]]))
        rows += found
        if not found:
            left_out.append(
                f"{experiment}: left out, as no seed that both completed has an example of both."
            )
    if not rows:
        raise DataError(f"{first} and {second} cannot be paired. {' '.join(left_out)}")
    return PairComparison(
        name="-vs-".join(re.sub(r"[^\w.+=-]+", "-", name).strip("-") for name in (first, second)),
        differences=[Difference(**row) for row in corrected(rows)],
        left_out=left_out,
        provenance=suite_provenance(sorted(runs, key=lambda run: run.id)),
    )


def _chosen(entries: Sequence[PlanEntry], name: str, plan: Path) -> BySetting:
    """Return the runs that a name means, by experiment."""
    found: dict[str, dict[str, list[PlanEntry]]] = {}
    for entry in entries:
        model, dataset, editor, variant, _ = entry.id.split("/")
        configured = () if entry.in_sweep else (editor, entry.labels.editor)
        if name in (f"{editor}/{variant}", f"{entry.labels.editor} ({variant})", *configured):
            settings = found.setdefault(f"{model}/{dataset}", {})
            settings.setdefault(f"{editor}/{variant}", []).append(entry)
    if not found:
        known = {entry.id.split("/")[2] for entry in entries}
        raise ConfigError(unknown_name("editor", name, known, str(plan)))
    for experiment, settings in found.items():
        if len(settings) > 1:
            raise ConfigError(
                f"'{name}' is {len(settings)} settings on {experiment}; give one of them: "
                f"{', '.join(settings)}"
            )
    return {
        experiment: seeds for experiment, settings in found.items() for seeds in settings.values()
    }


def _contestants(pair: Sequence[list[RunFolder]]) -> list[Contestant]:
    with_variant = len({seeds[0].spec.editor.label for seeds in pair}) == 1
    return [Contestant(seeds, setting_label(seeds[0], with_variant)) for seeds in pair]
