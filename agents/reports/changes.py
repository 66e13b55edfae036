"""Which words of a text changed."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

Parts = list[tuple[bool, str]]
"""Pieces of a text in order, and whether each is different in the other text."""


def changes(before: str, after: str) -> tuple[Parts, Parts]:
    """Both texts in pieces, of which those are marked that the other one lacks; compared word by word."""
    a, b = (re.findall(r"\S+|\s+", text) for text in (before, after))
    old: Parts = []
    new: Parts = []
    for kind, *ends in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for parts, taken in ((old, a[ends[0] : ends[1]]), (new, b[ends[2] : ends[3]])):
            text = "".join(taken)
            if text:
                parts.append((kind != "equal" and not text.isspace(), text))
    return old, new
