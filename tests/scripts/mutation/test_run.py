"""The list of planted mistakes fits the sources and the docs; that each is caught is shown by the command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.mutation.run import MUTANTS, PAGE, Config, check, main

ROOT = Path(__file__).parents[3]
TRAPS = (ROOT / "docs" / "traps.md").read_text()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mistake_fits_exactly_once_and_stands_in_the_docs_as_caught(mutant):
    check(mutant)
    assert f"| {mutant.trap} |" in TRAPS
    assert all((ROOT / test.partition("::")[0]).is_file() for test in mutant.tests.split())
    line = f"| {mutant.trap} | {mutant.name} | `{mutant.file}` | `tests/"
    assert line in PAGE.read_text(), "run `python -m scripts.mutants --write-docs`"


def test_there_are_forty_and_more_and_none_twice():
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


def test_every_test_that_the_pages_name_exists():
    for page in (TRAPS, PAGE.read_text()):
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
        assert len(named) > 40
        missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
        assert missing == []


def test_every_trap_has_a_test():
    listed = [f"A{i}" for i in range(1, 7)] + [f"N{i}" for i in range(1, 4)] + [f"P{i}" for i in range(1, 15)]
    listed += [f"T{i}" for i in range(1, 18)] + ["L1", "L2", "L3", "L4", "L5", "L6", "S1", "S2"]
    assert re.findall(r"^\| ([ANPTLS]\d+) \|", TRAPS, re.MULTILINE) == listed


@pytest.mark.slow
def test_two_of_them_are_really_caught():
    found = main(Config(only=("a time limit is not bootstrapped", "k3 with the log-ratio turned round")))
    assert found == {"mutants": 2, "caught": 2}
