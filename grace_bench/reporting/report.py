"""One HTML file with a suite's tables, figures and provenance, to be sent or kept as it is.

    write_report(suite / "summary.parquet", suite / "figures", suite / "report.html")

It loads nothing from anywhere: pictures are inside, there are no scripts.
"""

from __future__ import annotations

import base64
import itertools
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from grace_bench import __version__
from grace_bench.errors import DataError
from grace_bench.reporting.figures.style import INDEX
from grace_bench.reporting.figures.write import caption_of
from grace_bench.reporting.summary.read import Summary
from grace_bench.reporting.tables.table import plain_header
from grace_bench.reporting.tables.write import tables_of
from grace_bench.store import files, schemas

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>grace-bench: {{ suite }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
nav a { margin-right: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; border-top: 2px solid #222; border-bottom: 2px solid #222;
  margin: .5rem 0 2rem; font-variant-numeric: tabular-nums; }
th { border-bottom: 1px solid #222; font-weight: 600; font-size: .85rem; vertical-align: bottom; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th { white-space: normal; }
.name { text-align: left; }
.group { text-align: center; }
.interval { display: block; font-size: .7rem; color: #555; }
p.caption { max-width: 60rem; margin-bottom: .3rem; }
p.footnote { max-width: 60rem; margin: -1.5rem 0 2rem; font-size: .85rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0 2rem; }
img { max-width: 100%; height: auto; }
figcaption, footer { color: #444; font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: .85rem; }
</style>
</head>
<body>
<h1>Suite {{ suite }}</h1>
<nav><a href="#tables">Tables</a><a href="#figures">Figures</a>
{%- if paper %}<a href="#paper">The paper's figures</a>{% endif %}
{%- if failed %}<a href="#failed">Failed runs</a>{% endif %}
<a href="#provenance">Provenance</a>
</nav>
<h2 id="tables">Tables</h2>
{% for table in tables %}
<p class="caption">{{ table.caption }}</p>
<div class="wide">
<table>
<thead>
{% if table.groups|selectattr(0)|list %}
<tr>{% for name, span in table.groups %}<th class="group" colspan="{{ span }}">{{ name }}</th>
{%- endfor %}</tr>
{% endif %}
<tr>
{% for column in table.columns %}<th{% if loop.index0 < table.left %} class="name"{% endif %}>
{{- column|header }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>{% if row.heading -%}
<td class="name" colspan="{{ table.columns|length }}"><strong>{{ row.cells[0].text }}</strong></td>
{%- else %}{% for cell in row.cells %}<td
{%- if loop.index0 < table.left %} class="name"{% endif %}>
{%- if cell.bold %}<strong>{{ cell.text }}</strong>{% else %}{{ cell.text }}{% endif %}
{%- if cell.mark %}<sup>{{ cell.mark }}</sup>{% endif %}
{%- if cell.interval %}<span class="interval">{{ cell.interval }}</span>{% endif %}</td>
{%- endfor %}{% endif %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if table.footnotes %}
<p class="footnote">
{% for mark, sentence in table.footnotes %}<sup>{{ mark }}</sup> {{ sentence }}
{%- if not loop.last %}<br>{% endif %}
{% endfor %}
</p>
{% endif %}
{% endfor %}
<h2 id="figures">Figures</h2>
{% for figure in figures %}
<figure>
<img src="data:image/png;base64,{{ figure.data }}" alt="{{ figure.name }}">
<figcaption>{{ figure.caption or figure.name }}</figcaption>
</figure>
{% endfor %}
{% if paper or not_drawn %}
<h2 id="paper">The paper's figures</h2>
{% for figure in paper %}
<figure>
<img src="data:image/png;base64,{{ figure.data }}" alt="{{ figure.name }}">
<figcaption>{{ figure.name }}: {{ figure.caption }}</figcaption>
</figure>
{% endfor %}
{% if not_drawn %}
<p>Not drawn:</p>
<ul>
{% for line in not_drawn %}<li>{{ line }}</li>
{% endfor %}
</ul>
{% endif %}
{% endif %}
{% if failed %}
<h2 id="failed">Failed runs</h2>
<p>None of their numbers is in a table; the curves show how far each came.</p>
<ul>
{% for line in failed %}<li>{{ line }}</li>
{% endfor %}
</ul>
{% endif %}
{% if data %}
<h2 id="data">Data</h2>
<ul>
{% for line in data %}<li>{{ line }}</li>
{% endfor %}
</ul>
{% endif %}
<h2 id="provenance">Provenance</h2>
<dl>
{% for key, value in provenance.items() %}<dt>{{ key }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
<footer>Written by grace-bench {{ version }}.</footer>
</body>
</html>
"""


@dataclass(frozen=True)
class _Figure:
    name: str
    data: Markup
    caption: str = ""


def write_report(
    summary: Path, figures: Path, output: Path, paper_figures: Path | None = None
) -> None:
    """Write the report of a suite.

    Args:
        summary: summary.parquet.
        figures: folder of the PNG figures.
        output: path of the HTML file.
        paper_figures: folder of the paper's figures and their figures.json, if there is one.

    Raises:
        DataError: the summary is missing or damaged.
    """
    suite = Summary(summary)
    provenance = suite.provenance
    pictures = [
        _figure(path, caption_of(path.stem))
        for path in _ordered(Path(figures), "*.png", ("overview",))
    ]
    paper, not_drawn = _paper_figures(paper_figures)
    folder = Path(summary).parent
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["header"] = plain_header
    text = environment.from_string(TEMPLATE).render(
        suite=provenance.get("suite", ""),
        tables=list(itertools.chain(*tables_of(suite).values())),
        figures=pictures,
        data=[*_counted(folder), *_cut_short(folder)],
        failed=_failed(suite),
        paper=paper,
        not_drawn=not_drawn,
        provenance=provenance,
        version=__version__,
    )
    with files.atomic_path(output) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _failed(suite: Summary) -> list[str]:
    """Say of each run that failed at which step it did, and why."""
    return [
        f"{s.experiment.model}/{s.experiment.dataset}/{s.editor}/{s.variant}/seed-{f.seed}: "
        f"{f.place}{f' (example {f.example_id})' if f.example_id else ''}, {f.reason}."
        for s in suite.settings
        for f in suite.failures(s)
    ]


def _figure(path: Path, caption: str = "") -> _Figure:
    return _Figure(path.stem, Markup(base64.b64encode(path.read_bytes()).decode()), caption)


def _paper_figures(folder: Path | None) -> tuple[list[_Figure], list[str]]:
    """Return the paper's figures that were drawn, and a line for each that was not."""
    if folder is None or not (folder / INDEX).is_file():
        return [], []
    with _reading(folder / INDEX):
        told = [
            {key: e.get(key) for key in ("figure", "name", "caption", "why_not")}
            for e in files.read_json(folder / INDEX)
        ]
    drawn = [_figure(folder / f"{e['name']}.png", e["caption"]) for e in told if e["name"]]
    toy = folder / "toy.png"
    if toy.is_file():
        drawn.insert(0, _figure(toy, "The paper's toy (Fig. 2): one key repairs a disc."))
    return drawn, [f"Fig. {e['figure']}: {e['why_not']}" for e in told if not e["name"]]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a file of another form leads to into a sentence."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: is not what its step writes ({error!r}); make it again."
        ) from error


def _counted(folder: Path) -> list[str]:
    """Say of each data set of a suite what it holds and what was left out of it."""
    lines = []
    for path in sorted((folder / "data").glob("*/manifest.json")):
        with _reading(path):
            manifest = files.read_json(path)
            rows = {role: entry["rows"] for role, entry in manifest["roles"].items()}
            line = f"{path.parent.name}: {_counts(rows)}"
            if taught := _counts(manifest.get("also_in_train", {})):
                line += f"; also read in train: {taught}"
            dropped = manifest["dropped"].items()
            line += "; left out: " + (", ".join(f"{why} {n}" for why, n in dropped) or "nothing")
            lines.append(f"{line}.")
    return lines


def _counts(by_role: dict[str, int]) -> str:
    """Name the roles that have any, in their order: "train 7, edits 3"."""
    return ", ".join(f"{r} {n}" for r, n in sorted(by_role.items(), key=_role_order) if n)


def _role_order(item: tuple[str, object]) -> int:
    return schemas.ROLES.index(item[0])


def _cut_short(folder: Path) -> list[str]:
    """Say of each model and data set what `max_length` cuts, and what the tokenizer cannot say."""
    lines = []
    for path in sorted((folder / "baselines").glob("*/*/baseline.json")):
        with _reading(path):
            baseline = files.read_json(path)
            name = path.parent.relative_to(folder / "baselines").as_posix()
            cut = ", ".join(
                f"{role} {n['texts']} texts and {n['labels']} labels of {n['rows']} rows"
                for role, n in sorted(baseline.get("truncated", {}).items(), key=_role_order)
                if n["texts"] or n["labels"]
            )
            if cut:
                lines.append(f"{name}: cut short at max_length {baseline['max_length']}: {cut}.")
            unsaid = ", ".join(
                f"{role} {n['unsayable']} of {n['rows']} labels"
                for role, n in sorted(baseline.get("truncated", {}).items(), key=_role_order)
                if n.get("unsayable")
            )
            if unsaid:
                lines.append(
                    f"{name}: labels compared in the form that the tokenizer has: {unsaid}."
                )
    return lines


def _ordered(folder: Path, pattern: str, first: tuple[str, ...]) -> list[Path]:
    """Return files by name, the ones called `first` before all others."""

    def rank(path: Path) -> tuple[int, str]:
        return (first.index(path.stem) if path.stem in first else len(first), path.name)

    return sorted(folder.glob(pattern), key=rank)
