"""Texts without HTML: tags and comments are removed, entities become characters.

    without_markup("in <i>Chimel</i>, A &amp; B")      # "in Chimel, A & B"

Only HTML elements are tags: "a <b and c> d" of a formula, `<name>` and "< 5" are kept.
"""

from __future__ import annotations

import re
from html import unescape

_INLINE = "a abbr b cite code del em font i img ins q s small span strong sub sup u tbody thead"
_BLOCK = "blockquote br div h1 h2 h3 h4 h5 h6 hr li ol p table td th tr ul"
_REPLACEMENTS = dict.fromkeys(_INLINE.split(), "") | dict.fromkeys(_BLOCK.split(), " ")
_COMMENT = re.compile(r"<!--(?:(?!<!--).)*?-->", re.DOTALL)
_TAG = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]*)(?:\s+[\w-]+\s*=[^>]*|\s*/?)>")
_ENTITY = re.compile(r"&#?\w+;")


def without_markup(text: str) -> str:
    """Return `text` without HTML elements and comments, its entities resolved.

    The tag of a block becomes a space.
    """
    text = _COMMENT.sub("", text)
    text = _TAG.sub(lambda tag: _REPLACEMENTS.get(tag[1].lower(), tag[0]), text)
    return _ENTITY.sub(lambda entity: unescape(entity[0]), text)
