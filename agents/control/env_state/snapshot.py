"""The state of running environments as plain data, so that training resumes in mid-episode; nothing is pickled.

Each layer of the wrapper chain is saved in the first way that applies:

* by its own ``state_dict()`` and ``load_state_dict()``;
* by its plain attributes (``plain_state``), which is complete for Gymnasium's classic control;
* a scalar environment with other state (Box2D) is replayed from its last reset (``replay``).

The sub-environments of a ``SyncVectorEnv`` are saved one by one. ``restore`` refuses any other state, by name.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper

from agents.control.env_state import plain_state
from agents.control.env_state.replay import Recorder


def capture(envs: VectorEnv | gym.Env) -> dict[str, Any]:
    """The state of ``envs`` as a tree of plain values and arrays."""
    layers = _layers(envs)
    state: dict[str, Any] = {"layers": [_capture_layer(layer) for layer in layers], "kinds": _kinds(layers)}
    recorded = any(isinstance(layer, Recorder) for layer in layers)
    state["hidden"] = [] if recorded else [name for name in plain_state.hidden_in(envs) if not _is_sub(layers, name)]
    if isinstance(layers[-1], SyncVectorEnv):
        state["sub"] = [capture(env) for env in layers[-1].envs]
    return state


def restore(envs: VectorEnv | gym.Env, state: dict[str, Any]) -> None:
    """Load a captured state into ``envs``, which must have been reset once.

    Raises:
        ValueError: if the layers of ``envs`` differ from the captured ones, or their state could not be captured.
    """
    layers = _layers(envs)
    if _kinds(layers) != state["kinds"]:
        raise ValueError(f"expected the layers {_kinds(layers)}, received {state['kinds']}")
    if state["hidden"]:
        raise ValueError(
            f"the environment holds state that cannot be saved: {', '.join(state['hidden'])}. Implement state_dict() "
            "and load_state_dict(), or run scalar environments in a SyncVectorEnv, where they are replayed"
        )
    for layer, saved in zip(layers, state["layers"], strict=True):
        _restore_layer(layer, saved)
    if isinstance(layers[-1], SyncVectorEnv):
        for env, saved in zip(layers[-1].envs, state["sub"], strict=True):
            restore(env, saved)


def _layers(env: Any) -> list[Any]:
    layers = [env]
    while isinstance(layers[-1], (gym.Wrapper, VectorWrapper)):
        layers.append(layers[-1].env)
    return layers


def _kinds(layers: list[Any]) -> list[str]:
    return [type(layer).__name__ for layer in layers]


def _is_sub(layers: list[Any], name: str) -> bool:
    """Whether ``name`` is where a ``SyncVectorEnv`` keeps its sub-environments, which are captured in turn."""
    return isinstance(layers[-1], SyncVectorEnv) and name == f"{type(layers[-1]).__name__}.envs"


def _capture_layer(layer: Any) -> dict[str, Any]:
    if plain_state.has_state_dict(layer):
        return {"own": layer.state_dict()}
    return {"attributes": plain_state.attributes(layer)}


def _restore_layer(layer: Any, saved: dict[str, Any]) -> None:
    if "own" in saved:
        layer.load_state_dict(saved["own"])
        return
    for name, value in saved["attributes"].items():
        setattr(layer, name, plain_state.from_plain(value, getattr(layer, name, None)))
