"""The state of running environments as plain data, so that training resumes in mid-episode; nothing is pickled.

Of each layer of the wrapper chain, in this order:

* one that has ``state_dict()`` and ``load_state_dict()`` speaks for itself;
* any other gives its attributes that are plain data (``agents.control.env_state.plain_state``): complete for
Gymnasium's classic control
  and its native vector CartPole;
* where a scalar environment hides more than that (Box2D), it is replayed from its last reset
(``agents.control.env_state.replay``).

``SyncVectorEnv`` gives its sub-environments in turn. State that can be had in none of these ways is refused when it is
restored, with its name.
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
    """Put ``envs``, which has been reset once, into a captured state.

    Raises:
        ValueError: if ``envs`` is built of other layers than the captured one, or holds state that was out of reach.
    """
    layers = _layers(envs)
    if _kinds(layers) != state["kinds"]:
        raise ValueError(f"the saved environment is {state['kinds']}, this one is {_kinds(layers)}")
    if state["hidden"]:
        raise ValueError(
            f"the environment holds state that cannot be saved: {', '.join(state['hidden'])}. Give it state_dict() and "
            "load_state_dict(), or run scalar environments in a SyncVectorEnv, where they are replayed"
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
    if plain_state.speaks_for_itself(layer):
        return {"own": layer.state_dict()}
    return {"attributes": plain_state.attributes(layer)}


def _restore_layer(layer: Any, saved: dict[str, Any]) -> None:
    if "own" in saved:
        layer.load_state_dict(saved["own"])
        return
    for name, value in saved["attributes"].items():
        setattr(layer, name, plain_state.revive(value, getattr(layer, name, None)))
