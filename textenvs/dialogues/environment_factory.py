"""Our environments for TRL: classes in the shape that ``GRPOTrainer(environment_factory=...)`` takes."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from typing import Any

from textenvs.dialogues.bridge import Observation, as_text
from textenvs.dialogues.sub_environments import DialogueError, EnvSource, SubEnvironments, make_env
from textenvs.dialogues.tools import ToolEnv
from textenvs.tokens.chats import as_turns, is_chat, plain_text


def environment_factory(env: EnvSource) -> type[Any]:
    """A class for TRL's ``environment_factory`` that plays an environment over strings.

    ``reset(**row)`` returns the first observation, which TRL puts behind the last turn of the row's prompt. It begins
    with ``row["seed"]``, so that the rollouts of a group, which have one row, begin alike. The model plays by calls of
    a tool, ``answer(text=...)``, that return the next observation; the tools of a `ToolEnv` are tools here, too.
    ``get_reward()`` is the sum of the rewards so far. TRL tells the model whatever a tool raises; where the environment
    itself fails, ``get_reward()`` raises it, too, so that training does not go on.

    Args:
        env: an id, or a class or function that makes the environment; see `DialogueVectorEnv`.

    Raises:
        ValueError: a source that makes no environment; a tool of a name that the class needs. In ``reset``: no seed.
        DialogueError: in ``reset`` and ``get_reward``: the environment failed.
    """
    probe = make_env(env)
    probe = getattr(probe, "unwrapped", probe)

    class Playing:
        def __init__(self) -> None:
            self._envs, self._over = SubEnvironments(env, 1), True

        def reset(self, **row: Any) -> str:
            if not isinstance(row.get("seed"), int):
                raise ValueError(f"expected a data set with a column seed, of integers, received columns {sorted(row)}")
            self._reward = 0.0
            self._fault: DialogueError | None = None
            [(observation, _)] = self._envs.reset([0], [row["seed"]])
            self._over = False
            return _text(observation)

        def get_reward(self) -> float:
            if self._fault is not None:
                raise self._fault
            return self._reward

        def answer(self, text: str) -> str:
            """Take your turn.

            Args:
                text: What you say.

            Returns:
                The answer to it.
            """
            if self._over:
                raise ValueError("it is over")
            try:
                [reply] = self._envs.step([0], [text])
            except DialogueError as fault:
                self._fault = fault
                raise
            self._reward += reply.reward
            self._over = reply.terminated or reply.truncated
            return _text(reply.observation)

    Playing.__name__ = Playing.__qualname__ = type(probe).__name__
    for name, (tool, _) in probe.tools.items() if isinstance(probe, ToolEnv) else ():
        if hasattr(Playing, name):
            raise ValueError(f"tools: expected another name than {name!r}, which the class needs itself")
        setattr(Playing, name, _as_method(name, tool))
    return Playing


def _as_method(name: str, tool: Callable[..., Any]) -> Callable[..., str]:
    """A method that has a tool's arguments and documentation, and calls it in a turn of the `ToolEnv`."""

    @functools.wraps(tool)
    def method(self: Any, **arguments: Any) -> str:
        return str(self.answer(f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"))

    signature = inspect.signature(tool)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [itself, *signature.parameters.values()]
    method.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return method


def _text(observation: Observation) -> str:
    if is_chat(observation):
        return plain_text(as_turns(list(observation), "observation"))
    return as_text(observation) if observation else ""
