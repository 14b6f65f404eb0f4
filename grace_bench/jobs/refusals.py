"""Why a job refused its settings, kept in its folder and shown by `status`.

    with kept(run.folder, made_from=run.content_hash):
        ...
    refusal(run.folder, run.content_hash)

An error of the user's in the block is written down and raised again. The message stays until the
job is tried again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from grace_bench.errors import GraceBenchError, ResultError
from grace_bench.store.json_records import try_read, write_record
from grace_bench.store.records import Refusal

REFUSED = "refused.json"


@contextmanager
def kept(folder: Path, made_from: str) -> Iterator[None]:
    """Record what the block refuses and the user can fix; forget earlier refusals."""
    path = folder / REFUSED
    with suppress(OSError):
        path.unlink()
    try:
        yield
    except GraceBenchError as error:
        if error.exit_code == GraceBenchError.exit_code:
            with suppress(ResultError):
                write_record(path, Refusal(made_from=made_from, message=str(error)))
        raise


def refusal(folder: Path, made_from: str) -> str | None:
    """Return the message of a job that refused these settings; None: none did."""
    found = try_read(folder / REFUSED, Refusal)
    return None if found is None or found.made_from != made_from else found.message
