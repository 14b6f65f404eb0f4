"""Brings together the runs of a suite that were made on different machines.

    done = collect([Path("a/results/default"), Path("b/results/default")], Path("results"))

A run is copied whole, its files checked against the hashes in its run.json, or not at all.
Contradictions are not copied: runs of one id with different settings or results, runs of one data
set or model made from different data or weights. Nothing in the files is executed, no link is
followed, and nothing is written outside the output. Torch-free.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grace_bench.errors import ConfigError, DataError
from grace_bench.jobs.locks import exclusive
from grace_bench.reporting.summary.run_folder import RunFolder, read_run_folder
from grace_bench.results.copying import Piece, is_file, is_folder, place_folder
from grace_bench.results.shared_inputs import copy_inputs
from grace_bench.results.status import status_of_run
from grace_bench.store.files import sha256_of
from grace_bench.store.json_records import is_plain_name
from grace_bench.suite.plan import RUN_FILES
from grace_bench.suite.schema import base_model_name
from grace_bench.suite.section import is_name

LOCK = ".collect.lock"
TIMED = ("steps.parquet", "latency.parquet")
"""Files that hold seconds: no two machines write the same."""

SEED = re.compile(r"seed-[0-9]{1,18}")


@dataclass(frozen=True)
class FoundRun:
    """A finished run in one of the suite's folders."""

    place: Path  # the suite's folder
    run: RunFolder

    @property
    def id(self) -> str:
        """`model/dataset/editor/variant/seed-k`."""
        return self.run.id

    @property
    def result(self) -> dict[str, str]:
        """Hashes that are equal if the results are: of tables' rows, not of their bytes."""
        found = {**self.run.record.files, **(self.run.record.rows or {})}
        return {n: h for n, h in found.items() if n not in TIMED}

    @property
    def made_from(self) -> dict[str, tuple[str, str]]:
        """By kind, "data set" and "model": the name of what it was made from, and its hash."""
        record = self.run.record
        model, dataset = self.id.split("/")[:2]
        training = record.spec.model.training
        base_model = base_model_name(model, dataset, None if training is None else training.seed)
        return {
            "data set": (dataset, record.data_hash),
            "model": (base_model, record.model_hash),
        }


@dataclass
class Collected:
    """What was done.

    Args:
        copied: ids of the runs that are new in the output, including those that replaced others.
        kept: number of runs that were there already.
        inputs: number of data sets, baselines, models and assets that are new.
        notes: sentences on decisions.
        problems: sentences on what should have been copied and was not.
    """

    copied: list[str] = field(default_factory=list)
    kept: int = 0
    inputs: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def collect(sources: Sequence[Path], output: Path, with_models: bool = False) -> Collected:
    """Copy what the sources have and the output lacks.

    Args:
        sources: suites' folders (`results/<suite>`), or folders of results with several suites.
        output: the folder of results to copy to; suites get their folders in it.
        with_models: also copy base models and editors' assets; reports need neither.

    Raises:
        ConfigError: a source is no folder of results, or the output is a suite's folder.
        ResultError: the output cannot be written, or another process collects into it.
    """
    done = Collected()
    if (output / "runs").is_dir():
        raise ConfigError(f"{output}: is the folder of a suite; give the folder above it.")
    by_suite: dict[str, dict[Path, list[FoundRun]]] = defaultdict(dict)
    for source in sources:
        for place in suite_folders(source):
            found = list(find_runs(place, done))
            for suite in sorted({run.run.spec.suite for run in found}):
                if (output / suite).resolve() == place:
                    done.notes.append(f"{place}: is the folder to collect into; left unchanged.")
                    continue
                runs = [run for run in found if run.run.spec.suite == suite]
                by_suite[suite].setdefault(place, runs)
    with exclusive(output / LOCK, "collecting into this folder"):
        for suite, places in by_suite.items():
            _collect_suite(places, output / suite, with_models, done)
    return done


def suite_folders(source: Path) -> list[Path]:
    """Return the suites' folders at a place: the place itself, or those in it.

    Raises:
        ConfigError: there are none.
    """
    try:
        home = source.resolve(strict=True)
        if (home / "runs").is_dir():
            return [home]
        with os.scandir(home) as entries:
            names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ConfigError(f"{source}: cannot be read ({error}); check the path.") from error
    found = [home / name for name in names if is_folder(home / name / "runs")]
    if not found:
        raise ConfigError(f"{source}: has no runs; give results/<suite>, or the folder above it.")
    return found


def find_runs(place: Path, done: Collected) -> Iterator[FoundRun]:
    """Yield the finished runs of a suite's folder; notes and problems go into `done`."""
    unfinished = 0
    for folder in _walk(place / "runs", 5, done):
        if not is_file(folder / "run.json"):
            unfinished += 1
            continue
        try:
            yield FoundRun(place, _read(folder))
        except DataError as error:
            done.problems.append(f"{error} The run is not copied.")
    if unfinished:
        done.notes.append(f"{place}: {unfinished} runs are not finished; not copied.")


def _walk(folder: Path, levels: int, done: Collected) -> Iterator[Path]:
    if not levels:
        yield folder
        return
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        done.problems.append(f"{folder}: cannot be read ({error.strerror}); its runs are left out.")
        return
    for entry in entries:
        if entry.is_symlink():
            done.problems.append(f"{entry.path}: is a link, and links are not followed.")
        elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _walk(Path(entry.path), levels - 1, done)


def _read(folder: Path) -> RunFolder:
    """Read a run's record, and check that it belongs to this folder."""
    path = folder / "run.json"
    run = read_run_folder(folder)
    spec, parts = run.spec, folder.parts[-5:]
    if not all(map(is_name, (*parts[:3], spec.suite))) or not SEED.fullmatch(parts[4]):
        raise DataError(f"{path}: the run has names that no suite can have.")
    if run.id != "/".join(parts) or spec.names != parts[:3] or parts[4] != f"seed-{spec.seed}":
        raise DataError(f"{path}: belongs to the run {run.id[:200]!r}, not to this folder.")
    if not (run.record.data_hash and run.record.model_hash):
        raise DataError(f"{path}: lacks the hash of the run's data or weights.")
    files = run.record.files
    if bad := [n for n in files if not is_plain_name(n) or n[0] == "." or n == RUN_FILES[0]]:
        raise DataError(f"{path}: lists a file {bad[0][:100]!r} that no run has.")
    if missing := [name for name in RUN_FILES[1:] if name not in files]:
        raise DataError(f"{path}: does not list {', '.join(missing)}.")
    return run


def _collect_suite(
    places: dict[Path, list[FoundRun]], target: Path, with_models: bool, done: Collected
) -> None:
    present: list[FoundRun] = []
    if is_folder(target / "runs"):
        present = list(find_runs(target.resolve(), Collected()))
    coming = [run for runs in places.values() for run in runs]
    agreed: dict[tuple[str, str], str] = {}
    for kind in ("data set", "model"):
        coming = _agreeing(kind, coming, present, agreed, target, done)
    by_id: dict[str, list[FoundRun]] = defaultdict(list)
    for run in coming:
        by_id[run.id].append(run)
    ours = {run.id: run for run in present}
    for run_id in sorted(by_id):
        _collect_run(by_id[run_id], ours.get(run_id), target, done)
    # Only what the runs that are there now were made from.
    done.inputs += copy_inputs(list(places), target, agreed, with_models, done.problems)


def _agreeing(
    kind: str,
    coming: Sequence[FoundRun],
    present: Sequence[FoundRun],
    agreed: dict[tuple[str, str], str],
    target: Path,
    done: Collected,
) -> list[FoundRun]:
    """Return the runs made from the same data, or weights; runs in the output decide.

    Args:
        kind: "data set" or "model".
        coming: runs to be copied.
        present: runs in the output.
        agreed: receives the hash that was decided on, by kind and name.
        target: the suite's folder in the output.
        done: receives problems.
    """
    hashes: dict[str, dict[str, set[Path]]] = defaultdict(lambda: defaultdict(set))
    for run in coming:
        name, sha256 = run.made_from[kind]
        hashes[name][sha256].add(run.place)
    known = dict(run.made_from[kind] for run in present)
    for name, places in hashes.items():
        if name in known or len(places) == 1:
            agreed[kind, name] = known.get(name) or next(iter(places))
        if others := sorted(h for h in places if h != agreed.get((kind, name))):
            listed = "; ".join(
                f"{_short(h)} in {', '.join(map(str, sorted(places[h])))}" for h in others
            )
            ours = f" ({target} has {_short(known[name])})" if name in known else ""
            done.problems.append(
                f"{kind} {name}: runs were made with different ones: {listed}{ours}; none of these "
                "runs is copied, as their scores do not compare."
            )
    decided = {name: sha256 for (k, name), sha256 in agreed.items() if k == kind}
    return [run for run in coming if run.made_from[kind] in decided.items()]


def _collect_run(
    coming: list[FoundRun], ours: FoundRun | None, target: Path, done: Collected
) -> None:
    """Copy one run, if all places agree on it."""
    run_id = coming[0].id
    folder = target / "runs" / run_id
    if ours is not None and not _is_whole(ours.run):
        done.notes.append(f"{run_id}: the copy in {target} is damaged and is replaced.")
        ours = None
    if ours is None and status_of_run(run_id, folder, "").state == "running":
        done.problems.append(
            f"{run_id}: is running in {target} now; collect again when it is done."
        )
        return
    for found in _candidates(coming, ours, done):
        files = found.run.record.files
        pieces = [Piece(found.run.folder / name, sha256) for name, sha256 in files.items()]
        log = found.run.folder / "run.log"
        pieces += [Piece(log, optional=True)] if is_file(log) and log.name not in files else []
        pieces.append(Piece(found.run.folder / RUN_FILES[0]))
        try:
            place_folder(pieces, folder)
        except DataError as error:
            done.problems.append(f"{error} The run is not copied from there.")
        else:
            done.copied.append(run_id)
            return


def _candidates(
    coming: Sequence[FoundRun], ours: FoundRun | None, done: Collected
) -> list[FoundRun]:
    """Return the runs of one id of which any may be copied, in order of preference."""
    run_id = coming[0].id
    everything = [*([] if ours is None else [ours]), *coming]
    if len({run.run.record.content_hash for run in everything}) > 1:
        done.problems.append(
            f"{run_id}: was made with different settings in {_places(everything)}; not copied."
        )
        return []
    whole = [run for run in everything if run.run.failure is None]
    failed = [run for run in everything if run.run.failure is not None]
    if any(run.result != whole[0].result for run in whole):
        files = sorted({n for r in whole for n, _ in r.result.items() ^ whole[0].result.items()})
        done.problems.append(
            f"{run_id}: has different results in {_places(whole)} ({', '.join(files)}); not copied."
        )
        return []
    if whole and failed:
        done.notes.append(
            f"{run_id}: failed in {_places(failed)}, was completed in {_places(whole)}; the "
            "complete one counts."
        )
    if not whole and any(run.result != failed[0].result for run in failed):
        done.notes.append(
            f"{run_id}: failed in {_places(failed)}, with different files; the first counts."
        )
    best = whole or failed
    if ours is not None and ours in best:
        done.kept += 1
        return []
    return best


def _places(runs: Iterable[FoundRun]) -> str:
    return " and ".join(dict.fromkeys(str(run.place) for run in runs))


def _is_whole(run: RunFolder) -> bool:
    try:
        return all(sha256_of(run.folder / n) == h for n, h in run.record.files.items())
    except OSError:
        return False


def _short(sha256: str) -> str:
    return "".join(c for c in sha256 if c.isalnum())[:12]
