"""The base of all sections of a suite, and validation with readable messages. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grace_bench.errors import ConfigError, unknown_name
from grace_bench.suite.safe_yaml import check_plain, shown

Schema = TypeVar("Schema", bound=BaseModel)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,47}$"
"""Of suites, models, data sets and editors. Slurm's logs of a run lie in a folder named after all
of them, its variant and its seed, and file systems limit names to 255 bytes."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]

MOST_MISTAKES = 20
"""Most mistakes listed in one message."""


def is_name(text: str) -> bool:
    """Return whether a suite, a model, a data set or an editor can have this name."""
    return re.fullmatch(NAME_PATTERN, text) is not None


class Section(BaseModel):
    """Base of all sections: no unknown keys, immutable, no NaN or infinity.

    Attributes:
        COMPOSED_KEYS: further keys of its YAML, which are merged into other sections.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    COMPOSED_KEYS: ClassVar[tuple[str, ...]] = ()


def validate(schema: type[Schema], value: Any, where: str, glue: str = ".") -> Schema:
    """Return `value` as a `schema`, or raise ConfigError with one line per mistake.

    A message names its place as `where` + `glue` + key: ".", or ": " if `where` is a file.
    """
    check_plain(value, where, glue)
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        mistakes = error.errors()
        lines = [_sentence(schema, where, glue, e) for e in mistakes[:MOST_MISTAKES]]
        if len(mistakes) > MOST_MISTAKES:
            lines.append(f"and {len(mistakes) - MOST_MISTAKES} more mistakes.")
        raise ConfigError("\n".join(lines)) from error


def _sentence(schema: type[BaseModel], where: str, glue: str, error: Mapping[str, Any]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    keys = "".join(parts).strip(".")
    place = glue.join(filter(None, (where, keys))) or "config"
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        fields = _fields_at(schema, error["loc"][:-1])
        return unknown_name("key", key, fields, place)
    if error["type"] == "missing":
        return f"{place}: is missing; add it."
    if error["type"] in ("list_type", "tuple_type"):
        key = str(error["loc"][-1])
        example = "[0, 1]" if key == "seeds" else "[a, b]"
        return f"{place}: must be a list, as in {key}={example} (got {shown(error['input'])})."
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{place}: {message}."
    return f"{place}: {message[0].lower() + message[1:]} (got {shown(error['input'])})."


def _fields_at(schema: type[BaseModel], location: Sequence[Any]) -> Iterable[str]:
    """Follow field names down to the section a mistake is in, and list its keys."""
    current: Any = schema
    for part in location:
        if isinstance(part, int) or not hasattr(current, "model_fields"):
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        sections = [o for o in options if hasattr(o, "model_fields")]
        if len(sections) > 1:
            tagged = [s for s in sections if _is_tagged(s, location)]
            sections = tagged or sections
        current = sections[0] if sections else current
    fields = current.model_fields if hasattr(current, "model_fields") else ()
    return [*fields, *getattr(current, "COMPOSED_KEYS", ())]


def _is_tagged(section: Any, location: Sequence[Any]) -> bool:
    kind = section.model_fields.get("kind")
    return kind is not None and any(p in getattr(kind.annotation, "__args__", ()) for p in location)
