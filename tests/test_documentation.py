"""Pages that are generated must be what their generator makes today."""

from __future__ import annotations

import importlib.util
import re

import pytest

from grace_bench.reference import render


@pytest.fixture(scope="module")
def update_readme(repository):
    path = repository / "workflow" / "scripts" / "update_readme.py"
    spec = importlib.util.spec_from_file_location("update_readme", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_page_is_up_to_date(repository):
    assert (repository / "config" / "README.md").read_text() == render()


def test_every_setting_of_the_reference_is_explained():
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []


def test_rule_graph_in_the_readme_is_the_workflows(repository, update_readme):
    assert update_readme.rule_graph() in (repository / "README.md").read_text()


def test_files_and_suites_that_the_readme_names_exist(repository):
    readme = (repository / "README.md").read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", readme)
    links += re.findall(r"`((?:config|grace_bench|tests)/[\w./-]+\.\w+)`", readme)
    missing = {link for link in links if not (repository / link).exists()}
    # The paper's own suite is announced, the user's own editor is an example.
    assert missing <= {"config/suites/paper.yaml", "config/editors/my_editor.yaml"}
