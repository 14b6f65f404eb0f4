"""Saved views of MLflow's list of runs: the settings of one model and data set, side by side.

MLflow's interface keeps a view as a tag of the experiment, and opens it by the tag's name:
`/#/experiments/<id>/runs?viewStateShareKey=<name>`. Versions before 3.17 open the same address
and do not list the views by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby

from grace_bench.reporting.mlflow.records import TAG
from grace_bench.reporting.mlflow.settings import COLUMNS, Setting

PREFIX = "mlflow.sharedViewState."
RUN_NAME = "attributes.`Run Name`"
OWN = PREFIX + "grace-bench."


def saved_views(settings: Sequence[Setting]) -> Iterator[tuple[str, str, str]]:
    """Yield (title, tag, value) of a view for each model and data set.

    It lists parents, which can be opened to their seeds; columns are the main final metrics that
    any of them has. Runs that left the suite are not in it.
    """
    for _, members in groupby(settings, key=lambda setting: setting.experiment):
        own = list(members)
        spec = own[0].runs[0].spec
        title = f"{spec.dataset.label}, {spec.model.label}"
        known = {name for setting in own for name, *_ in setting.metrics}
        columns = [f"metrics.`final/{name}`" for name in COLUMNS if f"final/{name}" in known]
        state = {
            "searchFilter": f"tags.model = '{spec.model.name}' AND tags.dataset = "
            f"'{spec.dataset.name}' AND tags.`{TAG}stale` IS NULL",
            "orderByKey": "attributes.start_time",  # by any other, MLflow shows no tree
            "orderByAsc": False,
            "selectedColumns": columns,
            "columnOrder": [RUN_NAME, *columns],
            "columnWidths": {RUN_NAME: 300},
        }
        view = {
            "name": title,
            "createdAt": min(setting.started for setting in own),
            "state": json.dumps(state),
        }
        yield title, f"{OWN}{spec.model.name}.{spec.dataset.name}", json.dumps(view)
