"""Who may import whom, read from the sources: every import statement, also those inside functions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"textenvs", "reward_models", "agents", "scripts"}
MAY_IMPORT = {
    "textenvs": {"textenvs"},
    "reward_models": {
        "reward_models", "textenvs.attention", "textenvs.chats", "textenvs.kernels", "textenvs.rows", "textenvs.trunk",
    },
    "agents": {
        "agents", "textenvs.attention", "textenvs.kernels", "textenvs.key_order", "textenvs.rows", "textenvs.trunk",
    },
}  # fmt: skip
EXCEPTIONS = {("textenvs/assets.py", "load_scorer", "reward_models")}
"""(file, function, module): the shipped reward model is loaded only when the function is called."""

TOKEN_MODULES = {
    "adapters", "causal_lm", "decisions", "generation", "heads", "output_head", "plain_cache", "tabular_text", "text",
    "text_collector", "token_distribution", "token_head",
}  # fmt: skip
"""Modules of agents that may know tokens."""


def imports(path: Path):
    """Triples (enclosing function or None, imported module, line)."""

    def walk(node, function):
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            if isinstance(child, ast.Import):
                yield from ((function, alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                # `from textenvs import rows` imports textenvs.rows
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    is_module = (ROOT / Path(*whole.split("."))).with_suffix(".py").exists()
                    yield function, whole if is_module else child.module, child.lineno
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), None)


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_packages_import_only_along_the_arrows(package):
    wrong = []
    for path in sorted((ROOT / package).glob("*.py")):
        for function, module, line in imports(path):
            if module.split(".")[0] not in OURS:
                continue
            allowed = any(module == name or module.startswith(name + ".") for name in MAY_IMPORT[package])
            if not allowed and (f"{package}/{path.name}", function, module) not in EXCEPTIONS:
                wrong.append(f"{package}/{path.name}:{line} imports {module}")
    assert wrong == []


def test_only_the_text_modules_of_agents_know_tokens():
    knowing = {
        path.stem
        for path in (ROOT / "agents").glob("*.py")
        if any(module.startswith("textenvs") for _, module, _ in imports(path))
    }
    assert knowing <= TOKEN_MODULES, f"{sorted(knowing - TOKEN_MODULES)} import textenvs"


def test_the_packages_are_flat():
    for package in MAY_IMPORT:
        assert [path for path in (ROOT / package).rglob("*.py") if path.parent != ROOT / package] == []
