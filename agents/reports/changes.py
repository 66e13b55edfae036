"""Which words of a text changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

import numpy as np

Parts = list[tuple[bool, str]]
"""Pieces of a text in order, and whether each is different in the other text."""


def changes(before: str, after: str) -> tuple[Parts, Parts]:
    """Both texts in pieces, of which those are marked that are in no longest common subsequence of their words.

    Takes time as the product of the numbers of words whatever these are, unlike `difflib` on words that repeat.
    """
    old, new = re.findall(r"\S+", before), re.findall(r"\S+", after)
    kept = _common(old, new)
    return _pieces(before, kept[0]), _pieces(after, kept[1])


def _common(old: Sequence[str], new: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """Which words are in a longest common subsequence.

    L(i, j) = max(L(i-1, j), L(i, j-1), L(i-1, j-1) + same(i, j))
    """
    table = np.zeros((len(old) + 1, len(new) + 1), dtype=np.int32)
    index = {word: number for number, word in enumerate([*old, *new])}
    others = np.array([index[word] for word in new], dtype=np.int32)
    for i, word in enumerate(old):
        table[i + 1, 1:] = np.maximum(table[i, 1:], table[i, :-1] + (others == index[word]))
        table[i + 1] = np.maximum.accumulate(table[i + 1])
    i, j = len(old), len(new)
    kept = [False] * i, [False] * j
    while i and j:
        if old[i - 1] == new[j - 1]:
            i, j = i - 1, j - 1
            kept[0][i] = kept[1][j] = True
        elif table[i - 1, j] >= table[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return kept


def _pieces(text: str, kept: Sequence[bool]) -> Parts:
    """Stretches of words that are ``kept`` or not; white space between two words goes with both if they are alike."""
    words = zip(kept, re.finditer(r"\S+", text), strict=True)
    found: Parts = []
    end = 0
    for own, stretch in groupby(words, key=lambda pair: pair[0]):
        matches = [match for _, match in stretch]
        found += [(False, text[end : matches[0].start()]), (not own, text[matches[0].start() : matches[-1].end()])]
        end = matches[-1].end()
    return [(changed, piece) for changed, piece in [*found, (False, text[end:])] if piece]
