"""Running a notebook with other parameters than those of its kept outputs."""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient


def outputs(notebook) -> list[str]:
    """Return the text of each code cell's outputs."""
    return [
        "".join(
            output.get("text", "") or output.get("data", {}).get("text/plain", "")
            for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def executed(repository, name: str, folder, parameters: str) -> list[str]:
    """Run a notebook with other parameters, and return its outputs, from the same cells as kept."""
    notebook = nbformat.read(repository / "notebooks" / f"{name}.ipynb", 4)
    kept = outputs(notebook)
    [first] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    first.source = parameters
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
    found = outputs(notebook)
    assert [bool(text) for text in kept] == [bool(text) for text in found]
    return found
