"""The paper's toy (Fig. 2): the plane before editing and after two editors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from grace_bench.reporting.figures.style import PAGE, new_figure, save, save_csv
from grace_bench.steps.toy import Outcome, Toy, edit_toy, grid, make_toy, predict

CLASSES = ("#0072B2", "#D55E00")
SIDE = 120


def write_toy(folder: Path, seed: int = 0) -> list[Path]:
    """Make the toy, repair it by GRACE and by finetuning, and draw it.

    Returns:
        toy.pdf, toy.png, and toy.csv with the points and each network's class for them.
    """
    toy = make_toy(seed)
    outcomes = {"GRACE": edit_toy(toy, "grace", seed), "FT": edit_toy(toy, "ft", seed)}
    with new_figure(PAGE, 1.9) as figure:
        draw_toy(figure, toy, outcomes)
        paths = save(figure, folder, "toy", {"figure": "the paper's Fig. 2", "seed": str(seed)})
    return [*paths, save_csv(folder / "toy.csv", toy_rows(toy, outcomes))]


def toy_rows(toy: Toy, outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    """Return one row per point: its place, its class, and each network's class for it."""
    networks = {"before": toy.network, **{name: o.network for name, o in outcomes.items()}}
    rows = []
    for kind, points, classes in (
        ("upstream", toy.upstream, toy.classes.tolist()),
        ("edit", toy.edits, [1] * len(toy.edits)),
    ):
        predicted = {name: predict(network, points).tolist() for name, network in networks.items()}
        for index, (x, y) in enumerate(points.tolist()):
            row = {"kind": kind, "x": x, "y": y, "class": classes[index]}
            rows.append(row | {name: answers[index] for name, answers in predicted.items()})
    return rows


def draw_toy(figure: Figure, toy: Toy, outcomes: dict[str, Outcome]) -> None:
    """Draw the plane with the upstream points, with those to correct, and after each editor."""
    axes = figure.subplots(1, 2 + len(outcomes), sharex=True, sharey=True)
    _plane(axes[0], toy.network, "before\nupstream points")
    _points(axes[0], toy, upstream=True)
    _plane(axes[1], toy.network, f"before\n{len(toy.edits)} points to correct")
    _points(axes[1], toy, upstream=False)
    for panel, (name, outcome) in zip(axes[2:], outcomes.items(), strict=True):
        _plane(panel, outcome.network, _title(name, outcome))
        _points(panel, toy, upstream=True)


def _title(name: str, outcome: Outcome) -> str:
    keys = "" if outcome.n_keys is None else f", {outcome.n_keys} key"
    keys += "s" if (outcome.n_keys or 1) > 1 else ""
    return (
        f"after {name}: {outcome.n_edits} edits{keys}\n"
        f"disc {outcome.disc_accuracy:.2f}, upstream {outcome.upstream_accuracy:.2f}"
    )


def _plane(axes: Axes, network: nn.Module, title: str) -> None:
    points = grid(SIDE)
    classes = predict(network, points).reshape(SIDE, SIDE)
    x, y = points[:, 0].reshape(SIDE, SIDE), points[:, 1].reshape(SIDE, SIDE)
    axes.contourf(x, y, classes, levels=[-0.5, 0.5, 1.5], colors=CLASSES, alpha=0.2)
    axes.set_title(title, fontsize=6.5)
    axes.set_aspect("equal")


def _points(axes: Axes, toy: Toy, upstream: bool) -> None:
    points = toy.upstream if upstream else toy.edits
    tints = [CLASSES[c] for c in toy.classes.tolist()] if upstream else CLASSES[1]
    axes.scatter(points[:, 0], points[:, 1], c=tints, s=4, linewidths=0)
