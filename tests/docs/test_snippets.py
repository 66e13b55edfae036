"""Every snippet of README and docs runs, and every command line that they show is one that the parsers accept.

A ```` ```python ```` block is run, page by page in one namespace. ``<!-- illustration -->`` on the line before it says
that it is only to be read, and ``<!-- with NAME -->`` that it is run where the package NAME is installed. A block
inside an HTML comment is run and not shown.
"""

import importlib
import re
import shlex
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import textenvs  # noqa: F401 (registers the ids before a page does)
from agents.agent import Agent
from agents.algorithms.text import TextOptions
from agents.cli import COMMANDS, run
from agents.runs import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "api" not in path.parts)]
FENCE = re.compile(
    r"(?P<note><!-- (?:illustration|with (?P<package>\w+)) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
DOOR = re.compile(r"(?:^|\s)(?:-m\s+scripts\.(?P<module>\w+)|textenvs\s+(?P<command>[a-z][a-z-]*))(?P<rest>(?:\s.*)?)$")
MODULES = {"evaluate": "evaluate_agent"}
"""Where a command's name is not its module's."""


def is_run(match: re.Match[str]) -> bool:
    return not match["note"] or (match["package"] is not None and find_spec(match["package"]) is not None)


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Pairs (line number of the first line, source) of the blocks that are run."""
    found = [match for match in FENCE.finditer(text) if match["language"] == "python" and is_run(match)]
    return [(text.count("\n", 0, match.start("body")) + 1, match["body"]) for match in found]


def command_lines(text: str) -> list[str]:
    """Commands of shell blocks, continued lines joined and comments removed, and those inside a sentence."""
    lines: list[str] = []
    for match in FENCE.finditer(text):
        if match["language"] in ("", "sh", "bash"):
            lines += match["body"].replace("\\\n", " ").splitlines()
    lines += INLINE.findall(FENCE.sub("", text))
    return [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]


def doors(text: str) -> list[tuple[str, list[str]]]:
    """Pairs (module of ``scripts``, arguments) of every command of ours on the page."""
    found = []
    for line in command_lines(text):
        match = DOOR.search(line)
        if match:
            command = match["command"] or ""
            module = match["module"] or MODULES.get(command, command.replace("-", "_"))
            arguments = shlex.split(re.split(r"\s[|>&]", match["rest"])[0])
            bare = not arguments and line in INLINE.findall(text)  # a name in a sentence: that it exists is enough
            found.append((module, ["--help"] if bare else arguments))
    return found


def make_targets(text: str) -> list[str]:
    """Targets of every ``make`` command on the page."""
    return [target for line in command_lines(text) for target in re.findall(r"^make ([a-z-]+)$", line)]


FEW = 8
"""Texts or transitions that ``learn`` is cut down to, one update; also texts per update where a page says nothing."""


class Parsed(BaseException):
    """Ends a command once its flags are read; no handler of the product catches it."""


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page.read_text())], ids=name)
def test_the_page_runs(page, tmp_path, monkeypatch):
    learn = Agent.learn

    def short(self, total_timesteps=None, *args, **kwargs):
        return learn(self, total_timesteps and min(total_timesteps, FEW), *args, **{**kwargs, "progress_bar": False})

    monkeypatch.setattr(Agent, "learn", short)
    monkeypatch.setitem(TextOptions.__init__.__kwdefaults__, "batch_size", FEW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    registered, modules = dict(gym.registry), set(sys.modules)
    namespace = {"__name__": "snippet"}
    try:
        with torch.random.fork_rng():
            for line, source in python_blocks(page.read_text()):
                exec(compile("\n" * (line - 1) + source, name(page), "exec"), namespace)
    finally:
        for added in set(gym.registry) - set(registered):
            del gym.registry[added]
        for added in set(sys.modules) - modules:
            if getattr(sys.modules[added], "__file__", None) and str(tmp_path) in str(sys.modules[added].__file__):
                del sys.modules[added]


SHOWN = sorted({(name(page), module, tuple(line)) for page in PAGES for module, line in doors(page.read_text())})


@pytest.mark.parametrize("page, module, arguments", SHOWN, ids=lambda part: part if isinstance(part, str) else "")
def test_the_command_line_is_one_that_the_parser_accepts(page, module, arguments, monkeypatch, capsys):
    parse = cli.parse

    def only_parse(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(cli, "parse", only_parse)
    monkeypatch.setattr(sys, "argv", ["docs"])
    for variable in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):  # which commands set for themselves
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    door = importlib.import_module(f"scripts.{module}")
    command = {taken: given for given, taken in MODULES.items()}.get(module, module.replace("_", "-"))
    enter = partial(run, command) if command in COMMANDS else getattr(door, "command_line", None)
    if enter is None:
        assert not arguments, f"{page}: scripts.{module} takes no arguments"
        return
    needs_folder = "--run-dir" not in arguments and not set(arguments) & {"--help", "--plan"}
    for more in [[], ["--run-dir", "run"]] if needs_folder else [[]]:  # a sentence may leave the folder out
        try:
            enter([*arguments, *more])
        except Parsed:
            return
        except SystemExit as stop:
            if stop.code in (0, None):
                return
    pytest.fail(f"{page}: `scripts.{module} {' '.join(arguments)}`: {capsys.readouterr().err}")


def test_every_make_target_exists():
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    missing = {
        (name(page), target) for page in PAGES for target in make_targets(page.read_text()) if target not in known
    }
    assert missing == set()


def test_an_unknown_flag_and_a_failing_snippet_are_found():
    assert doors("```sh\ntextenvs train-text --no-such \\\n  1  # why\n```") == [("train_text", ["--no-such", "1"])]
    assert doors("call `python -m scripts.verify --env CartPole-v1` first") == [("verify", ["--env", "CartPole-v1"])]
    page = "a\n```python\nx = 1\n```\n<!-- illustration -->\n```python\nfail()\n```\n"
    page += "<!-- with json -->\n```python\ny = 1\n```\n<!-- with no_such -->\n```python\nfail()\n```\n"
    assert python_blocks(page) == [(3, "x = 1\n"), (11, "y = 1\n")]
    assert make_targets("`make demo`, make it") == ["demo"]
