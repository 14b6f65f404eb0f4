"""Cases that hypothesis draws, the same in every run, each counted as it is executed.

@cases(100, damage=damages())
def test_a_damaged_file_is_one_sentence(fence, damage): ...
"""

from __future__ import annotations

import functools
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from grace_bench.errors import GraceBenchError

HUGE = (2**60).to_bytes(8, "little")
SECONDS_A_CASE = 8.0  # of the processor; most cases take some milliseconds

settings.register_profile(
    "fuzz",
    derandomize=True,
    database=None,
    deadline=None,  # it would count what a busy machine does meanwhile
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def cases(n: int, **strategies: st.SearchStrategy) -> Callable:
    """Call a test with `n` drawn cases; `tests/fuzz/conftest.py` checks that they were executed."""

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def counted(*args: Any, **kwargs: Any) -> None:
            drawn.executed += 1
            with no_longer_than(SECONDS_A_CASE):
                test(*args, **kwargs)

        drawn = settings(settings.get_profile("fuzz"), max_examples=n)(given(**strategies)(counted))
        drawn.wanted, drawn.executed = n, 0
        return drawn

    return decorate


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Raise AssertionError in the block once it has used the processor for so long."""

    def stop(*_: object) -> None:
        raise AssertionError(f"a case takes more than {seconds} seconds of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def sentence_of(action: Callable[[], Any]) -> str | None:
    """Return what an error of ours says, None where there is none; other errors pass."""
    try:
        action()
    except GraceBenchError as error:
        text = str(error)
        assert text.strip()
        assert "Traceback" not in text
        assert len(text) < 20_000
        return text
    return None


class Fence:
    """A folder, and beside it files that nothing may read, change or remove."""

    def __init__(self, outer: Path) -> None:
        self.outer = outer
        self.inside = outer / "a" / "inside"
        self.secret = outer / "a" / "secret"
        self.inside.mkdir(parents=True)
        self.secret.mkdir()
        (self.secret / "file.txt").write_text("keep me")
        (self.secret / "tensors.safetensors").write_bytes(b"keep me, too")
        self._outside = self._listing()

    def emptied(self) -> Path:
        """Return the inner folder without anything in it."""
        shutil.rmtree(self.inside)
        self.inside.mkdir()
        return self.inside

    def check(self) -> None:
        """Assert that all outside is as it was."""
        assert self._listing() == self._outside

    def _listing(self) -> dict[str, bytes | None]:
        found = {}
        for path in sorted(self.outer.rglob("*")):
            if not path.is_relative_to(self.inside):
                found[str(path)] = path.read_bytes() if path.is_file() else None
        return found


HOSTILE_TEXTS = (
    *("", ".", "..", "../../x", "/etc/passwd", "/", "~", "~/x", "a/b", "a\\b", "C:\\x", ".hidden"),
    *("x" * 300, "x" * 5000, "é" * 100, "nul", "a\0b", "a\nb", "{wild}", "$(touch x)", "-rf"),
    *("\ud800", "\u202e", "None", "nan", "1e999", "__class__", "file:///etc/passwd", "*", "%s"),
)


def nested(levels: int) -> list:
    """Return a list in a list in a list ..."""
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


PLAIN_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400]),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), -0.5, 1e-300, 1e300, 0.1]),
    st.sampled_from(HOSTILE_TEXTS),
    st.text(max_size=8),
)
VALUES = st.one_of(
    PLAIN_VALUES,
    st.lists(PLAIN_VALUES, max_size=3),
    st.dictionaries(st.text(max_size=4), PLAIN_VALUES, max_size=3),
    st.sampled_from([20, 40, 70, 300]).map(nested),
)


@st.composite
def tree_changes(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw changes of a tree of lists and dicts, whatever the tree."""
    change = st.fixed_dictionaries(
        {
            "path": st.lists(st.integers(0, 40), min_size=1, max_size=7),
            "kind": st.sampled_from(["replace", "replace", "replace", "delete", "rename", "add"]),
            "value": VALUES,
            "name": st.one_of(st.sampled_from(HOSTILE_TEXTS), st.text(max_size=5)),
        }
    )
    return draw(st.lists(change, min_size=1, max_size=3))


def changed(tree: Any, changes: list[dict[str, Any]]) -> Any:
    """Return a copy of a JSON value with changes of `tree_changes` made to it."""
    root = [json.loads(json.dumps(tree))]
    for change in changes:
        parent, key = root, 0
        for number in change["path"]:
            child = parent[key]
            if not isinstance(child, (dict, list)) or not child:
                break
            names = list(child) if isinstance(child, dict) else range(len(child))
            parent, key = child, names[number % len(names)]
        kind, value = change["kind"], change["value"]
        if kind == "delete" and parent is not root:
            del parent[key]
        elif kind == "rename" and isinstance(parent, dict):
            parent[change["name"]] = parent.pop(key)
        elif kind == "add" and isinstance(parent, dict):
            parent[change["name"]] = value
        else:
            parent[key] = value
    return root[0]


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """Draw damages of a file's bytes, whatever the file."""
    kinds = st.sampled_from(["flip", "flip", "cut", "overwrite", "insert", "remove", "empty"])
    places = st.one_of(st.floats(0, 1), st.floats(0, 0.05), st.floats(0.95, 1))
    content = st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", HUGE]),
    )
    return draw(st.lists(st.tuples(kinds, places, content), min_size=1, max_size=3))


def damaged(content: bytes, damage: list[tuple[str, float, bytes]]) -> bytes:
    """Return bytes with damages of `damages` done to them."""
    for kind, place, extra in damage:
        at = min(int(place * len(content)), max(0, len(content) - 1))
        if kind == "empty":
            content = b""
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + extra + content[at:]
        elif kind == "remove":
            content = content[:at] + content[at + len(extra) :]
        elif kind == "overwrite":
            content = content[:at] + extra + content[at + len(extra) :]
        elif content:
            flipped = bytes([content[at] ^ (1 << extra[0] % 8)])
            content = content[:at] + flipped + content[at + 1 :]
    return content
