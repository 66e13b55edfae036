"""The caller's environments over text: making, seeding and stepping them, and naming the one that fails."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import gymnasium as gym

from textenvs.dialogues.bridge import Observation

EnvSource = str | Callable[[], Any]
"""An id, or a class or function that makes an environment, itself or as "module:Class": an object with `reset` and
`step` as in Gymnasium."""
Value = TypeVar("Value")


class Reply(NamedTuple):
    """What an environment's `step` returned."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class DialogueError(RuntimeError):
    """A sub-environment raised, or returned what no environment returns; the message has its number and turn."""


class SubEnvironments:
    """``number`` environments of one kind; ``threads`` of them are called side by side, 0: one after the other.

    ``numbers`` are what messages call them, None: 0, 1, ...

    Raises:
        ValueError: the source is neither an id nor a callable, or makes no environment.
    """

    def __init__(
        self, source: EnvSource, number: int, *, threads: int = 0, numbers: Sequence[int] | None = None
    ) -> None:
        self._numbers = range(number) if numbers is None else numbers
        self._envs = [make_env(source) for _ in range(number)]
        self._turns = [0] * number
        self._pool = ThreadPoolExecutor(threads) if threads else None

    def reset(self, indices: Sequence[int], seeds: Sequence[int | None]) -> list[tuple[Observation, dict[str, Any]]]:
        """First observations and infos of environments ``indices``, each begun with its seed."""

        def begin(index: int, seed: int | None) -> tuple[Observation, dict[str, Any]]:
            self._turns[index] = 0
            found = self._call(index, lambda: self._envs[index].reset(seed=seed))
            if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
                raise self._error(index, f"reset: expected (observation, info), received {found!r:.200}")
            return found

        return self._map(begin, indices, seeds)

    def step(self, indices: Sequence[int], actions: Sequence[Any]) -> list[Reply]:
        """What environments ``indices`` reply to the agent's turns ``actions``, in the order of ``indices``."""

        def answer(index: int, action: Any) -> Reply:
            self._turns[index] += 1
            found = self._call(index, lambda: self._envs[index].step(action))
            return self._reply(index, found)

        return self._map(answer, indices, actions)

    def close(self) -> None:
        """Close all environments that can be closed."""
        for env in self._envs:
            getattr(env, "close", bool)()
        if self._pool is not None:
            self._pool.shutdown()

    def _map(self, call: Callable[[int, Any], Value], indices: Sequence[int], values: Sequence[Any]) -> list[Value]:
        if self._pool is None:
            return [call(index, value) for index, value in zip(indices, values, strict=True)]
        calls = [self._pool.submit(call, index, value) for index, value in zip(indices, values, strict=True)]
        wait(calls)  # also after a fault: the next call is not to meet one that still runs
        return [each.result() for each in calls]

    def _call(self, index: int, call: Callable[[], Value]) -> Value:
        try:
            return call()
        except Exception as fault:
            last = traceback.extract_tb(fault.__traceback__)[-1]
            what = f"{type(fault).__name__}: {fault} ({last.filename}:{last.lineno})"
            raise self._error(index, what) from fault

    def _reply(self, index: int, found: Any) -> Reply:
        if not (isinstance(found, tuple) and len(found) == 5 and isinstance(found[4], dict)):
            raise self._error(
                index,
                f"step: expected (observation, reward, terminated, truncated, info), received {found!r:.200}",
            )
        observation, reward, terminated, truncated, info = found
        try:
            number = float(reward)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self._error(index, f"step: expected a finite reward, received {reward!r}")
        if terminated and truncated:
            raise self._error(index, "step: expected terminated or truncated, received both True")
        return Reply(observation, number, bool(terminated), bool(truncated), info)

    def place(self, index: int) -> str:
        """Names an environment and its turn, from 1 on, in messages."""
        return placed(self._numbers[index], self.names[index], self._turns[index])

    @property
    def names(self) -> list[str]:
        """Type of each environment."""
        return [type(env).__name__ for env in self._envs]

    def _error(self, index: int, what: str) -> DialogueError:
        return DialogueError(f"{self.place(index)}: {what}")


def placed(index: int, name: str, turn: int) -> str:
    """Names environment ``index``, of type ``name``, and its ``turn``, 0 before the first, in messages."""
    return f"sub-environment {index} ({name}), {f'in turn {turn}' if turn else 'in reset'}"


def source_of(name: str) -> Callable[..., Any]:
    """What makes the environment of the id ``name``, or what "module:Class" names; ValueError if that is nothing."""
    module, _, attribute = name.rpartition(":")
    if not (module and attribute.isidentifier()):
        return partial(gym.make, name, disable_env_checker=True)
    try:
        source: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as fault:
        raise ValueError(f"env {name}: {fault}") from fault
    return source


def make_env(source: EnvSource) -> Any:
    """An environment of ``source``; ValueError unless there is one."""
    if isinstance(source, str):
        source = source_of(source)
    if not callable(source) or (hasattr(source, "step") and not isinstance(source, type)):
        raise ValueError(
            f"env: expected an id, or a class or function that makes an environment, received {source!r:.200}; each "
            "sub-environment is one of its own"
        )
    env = source()
    if not (callable(getattr(env, "reset", None)) and callable(getattr(env, "step", None))):
        raise ValueError(f"env: expected an environment with reset and step, received {env!r:.200}")
    return env
