"""Environments whose state is out of reach (a physics engine's, say): remembered as what was done since the last reset.

Reset with the same random state and fed the same actions, a deterministic environment stands where it stood, bit for
bit; whether it does is checked against the last observation and the sum of rewards, so a wrong one is never trained in.
What other environments remember is in ``env_state``.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper

from agents.control.env_state import plain_state


class Recorder(gym.Wrapper):
    """Notes the random state before each reset and the actions after it, where the environment's own state is hidden.

    An environment that is plain data (``agents.control.env_state.plain_state.hidden`` names nothing) is passed
    through unrecorded. How
    it is can be seen after its first reset only.

    Args:
        env: any scalar environment.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.recording: bool | None = None
        self._start: dict[str, Any] = {}
        self._actions: list[np.ndarray] = []
        self._last: Any = None
        self._total = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment below."""
        if self.recording is not False:
            generator = None if seed is not None else copy.deepcopy(self.unwrapped.np_random.bit_generator.state)
            self._start = {"seed": seed, "generator": generator, "options": copy.deepcopy(options)}
        observation, info = self.env.reset(seed=seed, options=options)
        if self.recording is None:
            self.recording = bool(plain_state.hidden_in(self.env))
        if self.recording:
            self._actions, self._last, self._total = [], observation, 0.0
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment below."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.recording:
            self._actions.append(np.array(action))
            self._last, self._total = observation, self._total + float(reward)
        return observation, reward, terminated, truncated, info

    def state_dict(self) -> dict[str, Any]:
        """How to come here again; ``refused`` is the reason why that will not be possible, if it is not."""
        unrecorded = [] if self.recording else plain_state.hidden_in(self.env)
        if unrecorded:
            return {"refused": f"{type(self.unwrapped).__name__} grew state that cannot be saved: {unrecorded}"}
        if not self.recording:
            return {"replay": None}
        start, last = plain_state.plain(self._start), plain_state.plain(self._last)
        if plain_state.is_hidden(start) or plain_state.is_hidden(last):
            return {"refused": f"{type(self.unwrapped).__name__} has reset options or observations that are no data"}
        actions = np.stack(self._actions) if self._actions else None
        return {"replay": {"start": start, "actions": actions, "last": last, "total": self._total}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Reset and act as was recorded.

        Raises:
            ValueError: if the environment ends up elsewhere: it is not deterministic, or another version of it.
        """
        if "refused" in state:
            raise ValueError(state["refused"])
        replay = state["replay"]
        if replay is None:
            return
        start = plain_state.revive(replay["start"], None)
        if start["generator"] is not None:
            self.unwrapped.np_random.bit_generator.state = start["generator"]
        self.reset(seed=start["seed"], options=start["options"])
        self.recording = True
        for action in () if replay["actions"] is None else replay["actions"]:
            self.step(action[()])
        if not _same(plain_state.plain(self._last), replay["last"]) or self._total != replay["total"]:
            raise ValueError(
                f"{type(self.unwrapped).__name__} cannot be resumed in mid-episode: its state cannot be read, and the "
                f"{len(self._actions)} actions since its last reset lead elsewhere than before. It draws randomness "
                "from elsewhere than its np_random, remembers something over episodes, or is another version. Give it "
                "state_dict() and load_state_dict()"
            )


def record(envs: VectorEnv) -> None:
    """Put a ``Recorder`` around each sub-environment of a ``SyncVectorEnv``, in place; other kinds are left alone."""
    inner: Any = envs
    while isinstance(inner, VectorWrapper):
        inner = inner.env
    if isinstance(inner, SyncVectorEnv):
        inner.envs = [env if isinstance(env, Recorder) else Recorder(env) for env in inner.envs]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f")
    return bool(one == other)
