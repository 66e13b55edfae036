"""``textenvs/TextWorld-v0``: text adventures that TextWorld generates, as dialogues."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import gymnasium as gym

from textenvs.envs.base import TokenVectorBase, check_whole
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.factories import dialogue_vec, scalar
from textenvs.tasks.extras import OwnRandomness, as_settings, check_name, load, refuse_own
from textenvs.tokens.row_files import at

CUSTOM = {"nb_rooms", "nb_objects", "nb_parallel_quests", "quest_length", "quest_breadth"}
"""Settings of the task "custom": of TextWorld's ``GameOptions``."""
INFOS = ("score", "max_score", "won", "lost", "admissible_commands", "policy_commands", "facts")
OUTSIDE = re.compile(
    r"(?i)\b(tw-|(quit|q|restart|restore|save|undo|oops|again|g|script|transcript|verify|version|notify|verbose|brief"
    r"|superbrief)\b)"
)
"""Commands to the interpreter, and of TextWorld's own tracing, which are no moves."""


class GameFiles(list[str]):
    """Paths of compiled games. A temporary folder that they are in is removed once nobody has them any more."""

    def __init__(self, paths: Sequence[str], temporary: str | None = None) -> None:
        super().__init__(paths)
        if temporary is not None:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)


class TextWorldGame(gym.Env[str, str]):
    """One of some compiled games of TextWorld, which the seed draws.

    | Observation | what is to be done and where the player is, then what the game writes after a command            |
    | Action      | a command, "go east"; of several behind one another the first                                  |
    | Reward      | the difference of the game's score                                                             |
    | Termination | the game is won or lost                                                                        |
    | Truncation  | never                                                                                          |
    | Info        | score, max_score, won, lost; admissible_commands, the moves that change something or look;     |
    |             | policy_commands, a winning policy from here on; state: the facts of the game                   |

    Args:
        files: paths of games, ``.z8`` with their ``.json`` beside it: see `generate`; also those of ``tw-make``.

    Raises:
        ImportError: TextWorld is not installed.
        ValueError: no file, or one that is missing.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._world, self._files = load("textworld", "textworld"), files
        missing = [file for file in files if not os.path.isfile(file)]
        if missing or not files:
            raise ValueError(f"files: expected paths of compiled games, received {missing[:1] or 'none'}")
        self._env: Any = None
        self._loaded = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a game."""
        super().reset(seed=seed)
        file = self._files[int(self.np_random.integers(len(self._files)))]
        if self._env is None:
            wanted = dict.fromkeys((*INFOS, "objective", "description"), True)
            self._env = self._world.start(file, request_infos=self._world.EnvInfos(**wanted))
        elif file != self._loaded:
            self._env.load(file)
        state, self._loaded = self._env.reset(), file
        self._score = state.score or 0
        return _tidy(f"{state.objective or ''}\n{state.description}"), self._info(state)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do what the action says."""
        command = " ".join(re.split(r"[.\n]|\bthen\b", action.encode("ascii", "ignore").decode().strip())[0].split())
        if not command or OUTSIDE.search(command):
            return "That is no command.", 0.0, False, False, self._info(self._env.state)
        state, score, done = self._env.step(command)
        gained, self._score = (score or 0) - self._score, score or 0
        return _tidy(state.feedback), float(gained), bool(done), False, self._info(state)

    def close(self) -> None:
        """Close the interpreter."""
        if self._env is not None:
            self._env.close()
        self._env = None

    def _info(self, state: Any) -> dict[str, Any]:
        found = {name: state[name] for name in INFOS}
        facts = (self._files.index(self._loaded), sorted(map(str, found.pop("facts"))))
        return found | {"score": self._score, "policy_commands": found["policy_commands"] or [], "state": facts}


def generate(
    task: str,
    *,
    settings: Mapping[str, Any] | None = None,
    grammar: Mapping[str, Any] | None = None,
    games: int = 1,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
) -> GameFiles:
    """Games of a task, compiled: seconds each, unless they are in ``folder`` already.

    Args:
        task: "custom", or a challenge of TextWorld: "tw-coin_collector", "tw-treasure_hunter", "tw-simple",
            "tw-cooking".
        settings: of the challenge, or of `CUSTOM`.
        grammar: of TextWorld's ``GrammarOptions``: theme, include_adj, only_last_action, ...
        games: how many.
        seed: game i follows from seed + i.
        folder: where they are kept; None: a temporary one, removed with the last environment that plays them.

    Raises:
        ImportError: TextWorld is not installed.
        ValueError: an unknown task or setting, with the nearest names; one that is missing; a game that cannot be made.
    """
    world, challenges = load("textworld", "textworld"), load("textworld.challenges", "textworld").CHALLENGES
    check_name("task", task, {"custom", *challenges})
    settings, grammar = as_settings("settings", settings), as_settings("grammar", grammar)
    if task == "custom":
        for name in settings:
            check_name("settings of custom", name, CUSTOM)
    else:
        settings = _complete(task, challenges[task][2], settings)
    for name in grammar:
        check_name("grammar", name, world.GameOptions().grammar.__slots__)
    check_whole(1, games=games)
    check_whole(0, seed=seed)
    kept = mkdtemp(prefix="textworld-") if folder is None else os.fspath(folder)
    files = GameFiles([], kept if folder is None else None)
    written = repr((world.__version__, sorted(settings.items()), sorted(grammar.items())))
    name = f"{task}-{blake2b(written.encode(), digest_size=6).hexdigest()}"
    for number in range(seed, seed + games):
        path = Path(kept, f"{name}-{number}.z8")
        if not path.exists():
            with at(f"task {task}, seed {number}"), OwnRandomness(number).active():
                _compile(world, challenges, task, settings, grammar, number, path)
        files.append(str(path))
    return files


def text_world_vec(
    num_envs: int = 1,
    *,
    task: str | None = None,
    settings: Mapping[str, Any] | None = None,
    grammar: Mapping[str, Any] | None = None,
    games: int = 1,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> TokenVectorBase | TokenVectorWrapper:
    """``gym.make_vec("textenvs/TextWorld-v0", task=..., ...)``: dialogues with games that TextWorld generates.

    Each episode draws one of the games. Arguments are those of `generate` and, as ``options``, of
    `textenvs.factories.dialogue_vec`; so are errors.
    """
    if task is None:
        raise ValueError("task: expected 'custom' or the name of a challenge of TextWorld, received none")
    refuse_own(options, "env")
    files = generate(task, settings=settings, grammar=grammar, games=games, seed=seed, folder=folder)
    return dialogue_vec(num_envs, env=partial(TextWorldGame, files), **options)


text_world = partial(scalar, text_world_vec)
"""``gym.make("textenvs/TextWorld-v0", ...)``."""


def _complete(task: str, add_arguments: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The ``settings`` of a challenge, which are the flags of its command, over their defaults."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    flags = {flag.dest: flag for flag in parser._actions}
    for name, value in settings.items():
        check_name(f"settings of {task}", name, flags)
        if flags[name].choices is not None:
            check_name(f"settings of {task}: {name}", value, flags[name].choices or ())
    missing = [name for name, flag in flags.items() if flag.required and name not in settings]
    if missing:
        raise ValueError(f"settings of {task}: expected {', '.join(missing)}, received {settings!r}")
    return {name: flag.default for name, flag in flags.items()} | settings


def _compile(
    world: Any, challenges: Any, task: str, settings: dict[str, Any], grammar: Mapping[str, Any], seed: int, path: Path
) -> None:
    """Write a game to ``path``, which is there only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as scratch:
        options = world.GameOptions()
        options.seeds, options.path = seed, str(Path(scratch, path.name))
        for name, value in grammar.items():
            setattr(options.grammar, name, value)
        if task == "custom":
            for name, value in settings.items():
                setattr(options, name, value)
            game = world.generator.make_game(options)
        else:
            game = challenges[task][1](settings, options)
        made = Path(world.generator.compile_game(game, options))
        made.with_suffix(".json").replace(path.with_suffix(".json"))
        made.replace(path)


def _tidy(text: str) -> str:
    return re.sub(r"\s*\n\s*", "\n", text.partition("Would you like to RESTART")[0]).strip()
