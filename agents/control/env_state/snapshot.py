"""The state of running environments as plain data, so that training resumes in mid-episode; nothing is pickled.

Each layer of the wrapper chain is saved in the first way that applies:

* by its own ``state_dict()`` and ``load_state_dict()``;
* by its plain attributes (``plain_state``), which is complete for Gymnasium's classic control;
* a scalar environment with other state (Box2D) is replayed from its last reset (``Recorder``).

The sub-environments of a ``SyncVectorEnv`` are saved one by one. ``restore`` refuses any other state, by name.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

from agents.control.env_state import plain_state


def capture(envs: VectorEnv | gym.Env) -> dict[str, Any]:
    """The state of ``envs`` as a tree of plain values and arrays."""
    layers = plain_state.layers(envs)
    state: dict[str, Any] = {"layers": [], "kinds": [type(layer).__name__ for layer in layers], "hidden": []}
    for layer in layers:
        own = plain_state.has_state_dict(layer)
        state["layers"].append({"own": layer.state_dict()} if own else {"attributes": plain_state.attributes(layer)})
    if not any(isinstance(layer, Recorder) for layer in layers):
        state["hidden"] = plain_state.hidden_in(envs)
    if isinstance(layers[-1], SyncVectorEnv):
        listed = f"{state['kinds'][-1]}.envs"  # where it keeps its sub-environments, which are captured in turn
        state["hidden"] = [name for name in state["hidden"] if name != listed]
        state["sub"] = [capture(env) for env in layers[-1].envs]
    return state


def unsaved(state: dict[str, Any]) -> list[str]:
    """The attributes, or the reasons, for which ``restore`` would refuse a captured state."""
    refused = [layer["own"]["refused"] for layer in state["layers"] if "refused" in layer.get("own", ())]
    return [*state["hidden"], *refused, *(name for sub in state.get("sub", ()) for name in unsaved(sub))]


def restore(envs: VectorEnv | gym.Env, state: dict[str, Any]) -> None:
    """Load a captured state into ``envs``, which must have been reset once; ValueError if the layers of ``envs`` differ
    from the captured ones, or their state could not be captured."""
    layers = plain_state.layers(envs)
    kinds = [type(layer).__name__ for layer in layers]
    if kinds != state["kinds"]:
        raise ValueError(f"expected the layers {kinds}, received {state['kinds']}")
    if state["hidden"]:
        raise ValueError(
            f"the environment holds state that cannot be saved: {', '.join(state['hidden'])}. Implement state_dict() "
            "and load_state_dict(), or run scalar environments in a SyncVectorEnv, where they are replayed"
        )
    for layer, saved in zip(layers, state["layers"], strict=True):
        if "own" in saved:
            layer.load_state_dict(saved["own"])
        for name, value in saved.get("attributes", {}).items():
            setattr(layer, name, plain_state.from_plain(value, getattr(layer, name, None)))
    if isinstance(layers[-1], SyncVectorEnv):
        for env, saved in zip(layers[-1].envs, state["sub"], strict=True):
            restore(env, saved)


class Recorder(gym.Wrapper):
    """Record the random state before each reset and the actions after it, if the environment's own state is hidden.

    Replaying them restores a deterministic environment bit for bit; the last observation and the sum of rewards are
    compared, so that training never continues in a wrong state. An environment whose state is plain data
    (``plain_state.hidden_in`` is empty after the first reset) is not recorded.
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
        observation, info = self._checked("reset", "(observation, info)", self.env.reset(seed=seed, options=options))
        if self.recording is None:
            self.recording = bool(plain_state.hidden_in(self.env))
        if self.recording:
            self._actions, self._last, self._total = [], observation, 0.0
        return observation, info

    def step(self, action: object) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment below."""
        expected = "(observation, reward, terminated, truncated, info)"
        observation, reward, terminated, truncated, info = self._checked("step", expected, self.env.step(action))
        if self.recording:
            self._actions.append(np.array(action))
            self._last, self._total = observation, self._total + float(reward)
        return observation, reward, terminated, truncated, info

    def _checked(self, call: str, expected: str, received: Any) -> Any:
        """``received``, what the environment's ``call`` returned, if it is a tuple as ``expected``."""
        if isinstance(received, tuple) and len(received) == expected.count(",") + 1 and isinstance(received[-1], dict):
            return received
        raise ValueError(f"{type(self.unwrapped).__name__}.{call}: expected {expected}, received {received!r:.200}")

    def state_dict(self) -> dict[str, Any]:
        """The recording, or the reason why the state cannot be restored (``refused``)."""
        unrecorded = [] if self.recording else plain_state.hidden_in(self.env)
        if unrecorded:
            return {"refused": f"{type(self.unwrapped).__name__} has gained state that cannot be saved: {unrecorded}"}
        if not self.recording:
            return {"replay": None}
        start, last = plain_state.plain(self._start), plain_state.plain(self._last)
        if plain_state.is_hidden(start) or plain_state.is_hidden(last):
            name = type(self.unwrapped).__name__
            return {"refused": f"{name} has reset options or observations that are not plain data"}
        actions = np.stack(self._actions) if self._actions else None
        return {"replay": {"start": start, "actions": actions, "last": last, "total": self._total}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replay the recording; ValueError if the result differs: the environment is not deterministic, or is another
        version."""
        if "refused" in state:
            raise ValueError(state["refused"])
        replay = state["replay"]
        if replay is None:
            return
        start = plain_state.from_plain(replay["start"], None)
        if start["generator"] is not None:
            self.unwrapped.np_random.bit_generator.state = start["generator"]
        self.reset(seed=start["seed"], options=start["options"])
        self.recording = True
        for action in () if replay["actions"] is None else replay["actions"]:
            self.step(action[()])
        if not same(plain_state.plain(self._last), replay["last"]) or self._total != replay["total"]:
            raise ValueError(
                f"{type(self.unwrapped).__name__} cannot be resumed in mid-episode: its state cannot be read, and "
                f"replaying the {len(self._actions)} actions since its last reset gave another result. It draws "
                "randomness from outside np_random, keeps state across episodes, or is another version. Implement "
                "state_dict() and load_state_dict()"
            )


def record(envs: VectorEnv) -> None:
    """Put a ``Recorder`` around each sub-environment of a ``SyncVectorEnv``, in place; leave others alone."""
    inner = plain_state.layers(envs)[-1]
    if isinstance(inner, SyncVectorEnv):
        inner.envs = [env if isinstance(env, Recorder) else Recorder(env) for env in inner.envs]


def same(one: Any, other: Any) -> bool:
    """Whether two captured states, or parts of them, are equal; NaN is equal to itself."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f")
    return bool(one == other or (one != one and other != other))
