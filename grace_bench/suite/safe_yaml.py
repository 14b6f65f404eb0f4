"""YAML read safely, and checks of the plain values that suites consist of. Torch-free.

Reading and checking takes time and memory in proportion to the size of the text: aliases cannot
multiply it, nesting is limited, and so are the digits of a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from grace_bench.errors import ConfigError

DEEPEST = 32
"""Most levels of nested sections and lists."""

MOST_VALUES = 200_000
"""Most values of a suite; an aliased value counts each time it is used."""

MOST_TEXT = 10_000_000
"""Most characters in all texts of a suite."""

LARGEST_NUMBER = 2**63 - 1

LARGEST_FILE = 2**18
"""Largest file of a suite, in bytes."""

MOST_DIGITS = 400
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

BAD_YAML = (
    *(yaml.YAMLError, RecursionError),
    # Raised by the loader's constructors for values like 2024-02-30, `!!int ""` or `!!bool x`.
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
)
"""Exceptions that parsing YAML raises."""

HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number."""

    def fetch_flow_collection_start(self, TokenClass: type) -> None:
        """Refuse deep nesting early: the scanner's time grows with its square."""
        if self.flow_level > 2 * DEEPEST:
            raise ValueError("it is nested too deeply")
        super().fetch_flow_collection_start(TokenClass)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        # No two parts match the same digits, so the time is linear in their number.
        r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$"
    ),
    list("-+0123456789."),
)
# Integers come before floats in the list of resolvers, so "3" stays an int.


EXPONENT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+")
"""Numbers that other YAML readers, Snakemake's among them, read as texts."""


def with_numbers(value: Any) -> Any:
    """Return a value with texts like "5e-2" converted to numbers.

    For settings without a declared type: a suite is then the same whichever reader parsed it.
    """
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, Mapping):
        return {key: with_numbers(item) for key, item in value.items()}
    return [with_numbers(item) for item in value] if isinstance(value, list) else value


def load_yaml(text: str) -> Any:
    """Parse YAML after checking the size that aliases and long numbers would give it.

    Raises:
        BAD_YAML: it is not valid, or is larger than any suite.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """Raise ValueError for a document that is endless or too large once aliases are expanded."""
    sizes: dict[int, int] = {}
    waiting = [(root, False)]
    while waiting:
        node, inner_is_done = waiting.pop()
        inner = _inner_nodes(node)
        if inner_is_done:
            sizes[id(node)] = 1 + sum(sizes[id(part)] for part in inner)
            if sizes[id(node)] > MOST_VALUES:
                raise ValueError("it has more values than any suite")
        elif id(node) not in sizes:
            sizes[id(node)] = MOST_VALUES + 1  # for an alias of one of its parents
            waiting.append((node, True))
            waiting += [(part, False) for part in inner]
        if node.tag in NUMBER_TAGS and len(node.value) > MOST_DIGITS:
            raise ValueError(f"it has a number of {len(node.value)} parts")


def _inner_nodes(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def check_plain(value: Any, where: str, glue: str = ".") -> None:
    """Refuse values that no setting can have, before anything walks through them.

    These are values that are nested too deeply or without end, have too many parts, keys that are
    not texts, numbers of more than 64 bits, bytes, or texts that cannot be encoded.

    Raises:
        ConfigError: naming the place.
    """
    waiting: list[tuple[Any, str, int]] = [(value, "", 0)]
    left, room = MOST_VALUES, MOST_TEXT
    while waiting:
        item, keys, depth = waiting.pop()
        left -= 1
        room -= len(item) if isinstance(item, (str, bytes)) else 0
        if left < 0 or room < 0:
            raise ConfigError(f"{where or 'config'}: has more values than any suite; shorten it.")
        reason = _why_not_plain(item) or (depth > DEEPEST and f"more than {DEEPEST} levels deep")
        if reason:
            place = glue.join(filter(None, (where, keys))) or "config"
            raise ConfigError(f"{place}: is {reason}; fix it.")
        if isinstance(item, Mapping):
            room -= sum(map(len, item))
            parts = [(value, f".{shown_keys(key)}") for key, value in item.items()]
        elif isinstance(item, (list, tuple)):
            parts = [(value, f"[{index}]") for index, value in enumerate(item)]
        else:
            continue
        waiting += [(v, shown_keys(f"{keys}{part}".lstrip(".")), depth + 1) for v, part in parts]


def _why_not_plain(item: Any) -> str:
    """Return what is wrong with a single value; "": nothing."""
    if isinstance(item, Mapping):
        wrong = [key for key in item if not isinstance(key, str)]
        wrong += [key for key in item if isinstance(key, str) and not _is_writable(key)]
        return f"a section whose key {shown(wrong[0])} is not a text" if wrong else ""
    if isinstance(item, str):
        return "" if _is_writable(item) else f"a text that cannot be encoded (got {shown(item)})"
    if isinstance(item, (bytes, set, frozenset)):
        return "neither a text, nor a number, nor a list, nor a section"
    if isinstance(item, int) and abs(item) > LARGEST_NUMBER:
        return "larger than any number a setting can have"
    return ""


def _is_writable(text: str) -> bool:
    return "\0" not in text and (text.isascii() or not HALF_CHARACTER.search(text))


def shown_keys(keys: str) -> str:
    """Return a place for a message, shortened to its end if it is long."""
    return keys if len(keys) <= 200 else f"...{keys[-197:]}"


def shown(value: Any) -> str:
    """Return a value for a message, shortened if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= 100 else f"{text[:97]}..."


def first_line(error: Exception) -> str:
    """Return an error of parsing in one line, for a message."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join((str(error) or type(error).__name__).split())[:500]
