"""What an earlier call wrote into a folder of tables or figures and this call did not."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path


def remove_stale(
    folder: Path, kinds: Iterable[str], written: Collection[str], suffixes: Collection[str]
) -> None:
    """Remove files of these kinds that were not written now; all other files stay.

    Args:
        folder: of the files.
        kinds: names of files, or what they begin with: "sweep" stands for sweep-grace.md, too. If
            overview.png was written now, overview-talk.png is somebody else's.
        written: names of the files that stay.
        suffixes: of the files to remove.
    """
    for kind in kinds:
        is_one_file = any(f"{kind}{suffix}" in written for suffix in suffixes)
        patterns = [f"{kind}.*"] if is_one_file else [f"{kind}.*", f"{kind}-*"]
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            if path.name not in written and path.suffix in suffixes:
                path.unlink(missing_ok=True)
