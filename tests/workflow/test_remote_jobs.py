"""What Snakemake tells a job on a cluster of itself: names must come through as they are."""

from __future__ import annotations

import pytest
from snakemake.target_jobs import parse_target_jobs_cli_args
from snakemake_interface_executor_plugins.utils import TargetSpec, encode_target_jobs_cli_args

from grace_bench.suite.compose import load_suite
from grace_bench.suite.plan import expand

LONG = "n" * 48


def wildcards(run_id: str) -> dict[str, str]:
    model, dataset, editor, variant, seed = run_id.split("/")
    seed = seed.removeprefix("seed-")
    return dict(model=model, dataset=dataset, editor=editor, variant=variant, seed=seed)


def check(run_id: str) -> None:
    known = TargetSpec("edit", wildcards(run_id))
    [told] = parse_target_jobs_cli_args(encode_target_jobs_cli_args([known]))
    assert (told.rulename, told.wildcards_dict) == ("edit", known.wildcards_dict)
    # The folder of the job's logs; and nothing that a shell would see more in.
    assert len("_".join(wildcards(run_id).values())) <= 255
    assert not set(run_id) & set("\"'`$\\ ,;&|<>()*?!~#{}[]\n")


def test_the_runs_of_the_suites_that_come_with_us(repository):
    config = repository / "config"
    suites = [config / "config.yaml", *sorted((config / "suites").glob("*.yaml"))]
    assert len(suites) > 1
    for suite in suites:
        for run in expand(load_suite(suite, config)):
            check(run.id)


@pytest.mark.parametrize(
    "settings",
    [
        {"radius": 2.0, "steps": 3},
        {"rules": "released", "split": "shrink", "steps": 7},
        {"layer": "a.b,c"},
        {"layer": 'transformer.h.1"$(touch x)`'},
        {"layer": "x y;z & 'w'"},
        {"layer": "l" * 300, "steps": 2},
    ],
)
def test_runs_with_several_settings_and_awkward_ones(repository, settings):
    suite = load_suite(repository / "config/suites/smoke.yaml", repository / "config")
    [experiment, *_] = suite.experiments
    names = {
        part: {**getattr(experiment, part).model_dump(mode="json"), "name": LONG}
        for part in ("model", "dataset")
    }
    editor = {"name": LONG, "label": "E", "hyperparameters": settings}
    editor["editor"] = "rome" if "layer" in settings else "grace"
    found = expand(
        load_suite({"name": "s", "experiments": [names], "editors": [editor], "seeds": [2**31 - 1]})
    )
    assert len(found) == 1
    check(found[0].id)
