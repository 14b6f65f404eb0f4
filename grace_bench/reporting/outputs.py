"""What an earlier call wrote into a folder of tables or figures and this call did not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path


def remove_stale(
    folder: Path, kinds: Iterable[str], written: Collection[str], suffixes: Collection[str]
) -> None:
    """Remove files of these kinds that were not written now; all other files stay.

    Args:
        folder: of the files.
        kinds: names of files, or what they begin with: "sweep" stands for sweep-grace.md, too.
        written: names of the files that stay.
        suffixes: of the files to remove.
    """
    for kind in kinds:
        for path in [*folder.glob(f"{kind}.*"), *folder.glob(f"{kind}-*")]:
            if path.name not in written and path.suffix in suffixes:
                path.unlink(missing_ok=True)
