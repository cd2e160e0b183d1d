"""Long texts in pieces, so that the time and memory of encoding stay bounded.

A piece has at most PIECE characters and ends where a letter or digit is followed by something else. No pretoken spans such a
place and the pretoken expression does not look back, so the ids are those of the whole text. Only a run without any such place
(64 K letters, or 64 K characters of punctuation or blanks) is cut at the limit itself, which ends a pretoken there, always at the
same place for the same text.
"""

from __future__ import annotations

import re

PIECE = 64 * 1024  # characters

_CUT = re.compile(r"(?<=[^\W_])(?=[\x00-/:-@\[-`{-\x7f\u3000-\u3003\uff01-\uff0f])")  # after a letter or digit, before none


def pieces(text: str, limit: int = PIECE) -> list[str]:
    """`text` in parts of at most `limit` characters, cut where no pretoken spans, else at the limit."""
    if len(text) <= limit:
        return [text]
    parts, start = [], 0
    while len(text) - start > limit:
        end = start + limit
        for reach in (256, limit):  # near the end first: it is nearly always there
            last = None
            for match in _CUT.finditer(text, max(start + 1, end - reach), end + 1):
                last = match.start()
            if last is not None and last > start:
                end = last
                break
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]
