"""An environment over strings as an OpenEnv server, which ``textenvs/OpenEnv-v0`` and OpenEnv's clients can play."""

from __future__ import annotations

import json
from typing import Any

from textenvs.dialogues.sub_environments import EnvSource, SubEnvironments
from textenvs.tasks.extras import load


def open_env_app(env: EnvSource, *, max_sessions: int = 256) -> Any:
    """The application, for ``uvicorn my_module:app``, of a server whose sessions each play one ``env``.

    An action has the field ``text``, the agent's turn; an observation ``text``, a string or turns of a chat. What the
    environment tells besides, its info, is the metadata, as JSON; a time limit is done with ``truncated`` there.

    Args:
        env: an id, or a class or function that makes the environment; see `DialogueVectorEnv`.
        max_sessions: at a time.

    Returns:
        A FastAPI application, of OpenEnv's ``create_app``.

    Raises:
        ImportError: OpenEnv is not installed.
        ValueError: a source that makes no environment.
    """
    core = load("openenv.core", "openenv")
    SubEnvironments(env, 1).close()

    class TextAction(core.Action):  # type: ignore[misc, name-defined]
        text: str

    class TextObservation(core.Observation):  # type: ignore[misc, name-defined]
        text: str | list[dict[str, str]]

    def observed(text: Any, info: dict[str, Any], reward: float | None = None, done: bool = False) -> TextObservation:
        try:
            return TextObservation(text=text, metadata=_as_json(info), reward=reward, done=done)
        except ValueError as fault:  # which OpenEnv would blame on the action
            raise TypeError(f"expected an observation of text or of turns, received {text!r:.200}") from fault

    class TextEnvironment(core.Environment):  # type: ignore[misc, name-defined]
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            super().__init__()
            self._envs = SubEnvironments(env, 1)
            self._state = core.State()

        def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> TextObservation:
            self._state = core.State(episode_id=episode_id)
            [(text, info)] = self._envs.reset([0], [seed])
            return observed(text, info)

        def step(self, action: TextAction, timeout_s: float | None = None, **_: Any) -> TextObservation:
            self._state.step_count += 1
            [reply] = self._envs.step([0], [action.text])
            info = reply.info | ({"truncated": True} if reply.truncated else {})
            return observed(reply.observation, info, reply.reward, reply.terminated or reply.truncated)

        @property
        def state(self) -> Any:
            return self._state

        def close(self) -> None:
            self._envs.close()

    return core.create_app(TextEnvironment, TextAction, TextObservation, max_concurrent_envs=max_sessions)


def _as_json(info: dict[str, Any]) -> dict[str, Any]:
    """With numbers of numpy as Python's, and what JSON has no form for as text."""
    return json.loads(json.dumps(info, default=lambda value: getattr(value, "tolist", value.__repr__)()))
