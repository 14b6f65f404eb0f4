"""Texts without HTML: tags and comments are removed, entities become characters.

    without_markup("in <i>Chimel</i>, A &amp; B")      # "in Chimel, A & B"

Only HTML elements are tags: "a <b and c> d" of a formula, `<name>` and "< 5" are kept.
"""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

_INLINE = "a abbr b cite code del em font i img ins q s small span strong sub sup u"
_BLOCK = "blockquote br div h1 h2 h3 h4 h5 h6 hr li ol p table td th tr ul"
_ELEMENTS = frozenset(f"{_INLINE} {_BLOCK} tbody th thead".split())
_BLOCKS = frozenset(_BLOCK.split())
_MARKUP = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?:\s+[\w-]+\s*=[^>]*|\s*/?)>|<!--|&#?\w+;")
_NAME = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]*)")


def without_markup(text: str) -> str:
    """Return `text` without HTML elements and comments, its entities resolved."""
    if not _MARKUP.search(text):
        return text
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return "".join(reader.parts)


class _Reader(HTMLParser):
    """Collects the text; the tag of a block becomes a space, that of an unknown element is kept."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_entityref(self, name: str) -> None:
        self.parts.append(unescape(f"&{name};"))

    def handle_charref(self, name: str) -> None:
        self.parts.append(unescape(f"&#{name};"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag(self.get_starttag_text() or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        self._tag(f"</{tag}>")

    def handle_decl(self, decl: str) -> None:
        self.parts.append(f"<!{decl}>")

    def handle_pi(self, data: str) -> None:
        self.parts.append(f"<?{data}>")

    def _tag(self, raw: str) -> None:
        named = _NAME.match(raw)
        name = named.group(1).lower() if named else ""
        if name not in _ELEMENTS or not _MARKUP.fullmatch(raw):
            self.parts.append(raw)
        elif name in _BLOCKS:
            self.parts.append(" ")
