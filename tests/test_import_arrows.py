"""Which room may import which, read from the sources: every import statement, also those inside functions."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = {
    "textenvs": 0,
    "reward_models": 1,
    "agents": 2,
    "scripts": 3,
}
"""A package imports only itself and packages before it."""
TOKEN_ROOMS = {
    "agents.algorithms", "agents.lm", "agents.text", "agents.evaluation", "agents.recipes", "agents.recipes.rlhf",
    "agents.recipes.sft", "agents.recipes.games",
    "agents.engines", "agents.verification.environments", "agents.verification.exact", "agents.verification.models",
    "agents.verification.monitors", "agents.verification.proof",
}  # fmt: skip
"""Rooms of agents that may know tokens; the core and control are Gymnasium's alone."""


def modules() -> dict[str, Path]:
    paths = (path for package in ORDER for path in sorted((ROOT / package).rglob("*.py")))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = modules()


def room(module: str) -> str:
    return ".".join(MODULES[module].parent.relative_to(ROOT).parts)


def imports(path: Path):
    """Pairs (imported module of ours, line)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # `from textenvs import rows` imports textenvs.rows
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found = whole if whole in MODULES else node.module
                if found in MODULES:
                    yield found, node.lineno


@cache
def arrows() -> dict[str, dict[str, list[str]]]:
    """Room to room, with the places that draw the arrow."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for module, path in MODULES.items():
        for imported, line in imports(path):
            if room(imported) != room(module):
                found[room(module)][room(imported)].append(f"{path.relative_to(ROOT)}:{line}")
    return found


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_only_what_comes_before_them(package):
    wrong = [
        place
        for start, ends in arrows().items()
        for end, places in ends.items()
        for place in places
        if start.split(".")[0] == package and ORDER[end.split(".")[0]] > ORDER[package]
    ]
    assert wrong == []


def test_there_is_no_circle_between_rooms():
    def path_from(start: str, goal: str, seen: set[str]) -> list[str] | None:
        for end in arrows().get(start, ()):
            if end == goal:
                return [start, end]
            if end not in seen:
                seen.add(end)
                rest = path_from(end, goal, seen)
                if rest is not None:
                    return [start, *rest]
        return None

    circles = [circle for start in list(arrows()) if (circle := path_from(start, start, set())) is not None]
    assert circles == []


def test_only_the_rooms_for_text_import_textenvs():
    knowing = {start for start, ends in arrows().items() if any(end.split(".")[0] == "textenvs" for end in ends)}
    knowing = {start for start in knowing if start.split(".")[0] == "agents"}
    assert knowing <= TOKEN_ROOMS, f"{sorted(knowing - TOKEN_ROOMS)} import textenvs"


def test_every_room_says_what_it_holds():
    inits = [path for package in ORDER for path in sorted((ROOT / package).rglob("__init__.py"))]
    assert [path for path in inits if not ast.get_docstring(ast.parse(path.read_text()))] == []
    rooms = {path.parent for package in ORDER for path in (ROOT / package).rglob("*.py")}
    assert sorted(rooms - {path.parent for path in inits}) == []
