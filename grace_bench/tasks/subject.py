"""Where a text mentions its subject.

    last_mention("Capital of Niger, not Nigeria?", "Niger")  # (11, 16)

Only whole words count.
"""

from __future__ import annotations

import re
import unicodedata


def last_mention(text: str, subject: str) -> tuple[int, int] | None:
    """Return the characters [start, end) of the last whole-word mention of a subject.

    Mentions in the subject's own case take precedence: May in "Was May born in may?".
    """
    if not subject:
        return None
    for flags in (re.NOFLAG, re.IGNORECASE):  # folding letter by letter keeps positions
        found = re.finditer(f"(?={re.escape(subject)})", text, flags)
        starts = [match.start() for match in found]
        for start in reversed(starts):
            end = start + len(subject)
            if not (_joined(text, start) or _joined(text, end)):
                return start, end
    return None


def _joined(text: str, place: int) -> bool:
    """Say whether the letters before and after a place belong to one word.

    Scripts without case (Chinese, Japanese) may write words without spaces.
    """
    if not 0 < place < len(text):
        return False
    before, behind = text[place - 1], text[place]
    return bool(unicodedata.combining(behind)) or (_in_word(before) and _in_word(behind))


def _in_word(letter: str) -> bool:
    return letter.isdigit() or letter == "_" or letter.lower() != letter.upper()
