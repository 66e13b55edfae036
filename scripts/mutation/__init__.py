"""Mutation testing of the project's own tests: a mistake (`Mutant`), the mistakes (`mutants.toml`), and their run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings


@dataclass(frozen=True)
class Mutant:
    """One mistake that others made once, as a replacement in one file."""

    trap: str  # which entry of docs/traps.md it is, "P4" for instance
    name: str  # what goes wrong, in words
    file: str  # the source, from the repository's root
    old: str  # what stands there, exactly once
    new: str  # what is planted in its place
    tests: str = ""  # tests, by file or id, that should notice, parted by spaces; "": the file that mirrors the source

    def __post_init__(self) -> None:
        if not self.tests:
            source = PurePosixPath(self.file)
            object.__setattr__(self, "tests", f"tests/{source.parent}/test_{source.name}")


def read_mutants() -> tuple[Mutant, ...]:
    """The mistakes of `mutants.toml`, by the source that they are planted in."""
    found = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text(encoding="utf-8"))
    return tuple(Mutant(file=file, **planted) for file, each in found.items() for planted in each)
