"""Splits a text into sentences by rules alone; there is nothing to install or download.

split_sentences("He met Dr. J. J. Reid. It rained.")    # two sentences
"""

from __future__ import annotations

import re

_END = re.compile(r"""[.!?]+["'\u201d\u2019)\]]*(?=\s)|\n\s*\n""")
_OPENING = "\"'([\u201c\u2018"
_NEVER_END = """
    mr mrs ms dr prof rev fr hon gov gen col lt cpt capt maj sgt cmdr adm sen rep pres st mt ft
    messrs mme mlle vs v cf no nos vol p pp ed eds op ca c b d r m fl approx dept univ e.g i.e viz
    jan feb mar apr jun jul aug sep sept oct nov dec
"""
_SOMETIMES_END = "jr sr inc ltd co corp etc al bros"
_STARTERS = """
    the a an he she it they his her its their this that these those in on at by for from after
    before during while when as since with until although however born there i we
"""
NEVER_END = frozenset(_NEVER_END.split())
"""Abbreviations that never end a sentence."""

SOMETIMES_END = frozenset(_SOMETIMES_END.split())
"""Abbreviations that end a sentence before a word of `STARTERS`, as "U.S." does."""

STARTERS = frozenset(_STARTERS.split())
"""Words that often begin a sentence."""


def split_sentences(text: str) -> list[str]:
    """Return the sentences in order, without surrounding white space."""
    sentences = []
    start = 0
    for end in _END.finditer(text):
        if _is_boundary(text, start, end):
            sentences.append(text[start : end.end()])
            start = end.end()
    sentences.append(text[start:])
    return [sentence.strip() for sentence in sentences if sentence.strip()]


def _is_boundary(text: str, start: int, end: re.Match[str]) -> bool:
    if not end.group().strip():
        return True  # an empty line
    following = text[end.end() :].lstrip()
    if not following:
        return True
    if not (following[0].isupper() or following[0].isdigit() or following[0] in _OPENING):
        return False
    if end.group()[0] != "." or len(end.group()) > 1:
        return True
    words = re.split(r"[\s\u2013\u2014-]+", text[start : end.start()])  # "Missouri-St. Louis"
    last = words[-1].lstrip(_OPENING)
    next_word = following.split()[0].strip("\"'").rstrip(".,;:").casefold()
    word = last.casefold()
    if word in NEVER_END and not last.isupper():
        return False
    is_initial = len(last) == 1 and last.isalpha() and last.isupper()
    if is_initial or word in SOMETIMES_END or re.fullmatch(r"(?:\w+\.)+\w+", last):
        return next_word in STARTERS
    return True
