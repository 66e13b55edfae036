"""What a planted mistake is: a few characters of the sources, exchanged, and the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One mistake that others made once, as a replacement in one file."""

    trap: str
    """which entry of docs/traps.md it is, "P4" for instance"""
    name: str
    """what goes wrong, in words"""
    file: str
    """the source, from the repository's root"""
    old: str
    """what stands there, exactly once"""
    new: str
    """what is planted in its place"""
    tests: str
    """test files, or tests by id, that should notice; separated by spaces"""
