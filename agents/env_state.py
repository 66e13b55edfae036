"""The state of running environments as plain data, so that training resumes in mid-episode; nothing is pickled.

An environment that has ``state_dict()`` and ``load_state_dict()`` speaks for itself. Of any other, each layer of its
wrapper chain gives the attributes that are plain data (numbers, strings, arrays, lists of those, random generators);
spaces, functions, windows and physics engines are left as the fresh environment has them. That is complete for
Gymnasium's classic control and its native vector CartPole. ``SyncVectorEnv`` gives its sub-environments in turn.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper

GENERATOR = "__numpy_generator__"
_NOT_PLAIN = object()
_SKIPPED = {"metadata", "spec", "_cached_spec", "_action_space", "_observation_space", "_metadata", "env_fns"}


def capture(envs: VectorEnv | gym.Env) -> dict[str, Any]:
    """The state of ``envs`` as a tree of plain values and arrays."""
    layers = _layers(envs)
    state: dict[str, Any] = {"layers": [_capture_layer(layer) for layer in layers], "kinds": _kinds(layers)}
    if isinstance(layers[-1], SyncVectorEnv):
        state["sub"] = [capture(env) for env in layers[-1].envs]
    return state


def restore(envs: VectorEnv | gym.Env, state: dict[str, Any]) -> None:
    """Put ``envs``, which has been reset once, into a captured state.

    Raises:
        ValueError: if ``envs`` is built of other layers than the captured one.
    """
    layers = _layers(envs)
    if _kinds(layers) != state["kinds"]:
        raise ValueError(f"the saved environment is {state['kinds']}, this one is {_kinds(layers)}")
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


def _speaks_for_itself(layer: Any) -> bool:
    return hasattr(type(layer), "state_dict") and hasattr(type(layer), "load_state_dict")


def _capture_layer(layer: Any) -> dict[str, Any]:
    if _speaks_for_itself(layer):
        return {"own": layer.state_dict()}
    plain = {name: _plain(value) for name, value in vars(layer).items() if name not in _SKIPPED}
    return {"attributes": {name: value for name, value in plain.items() if value is not _NOT_PLAIN}}


def _restore_layer(layer: Any, saved: dict[str, Any]) -> None:
    if "own" in saved:
        layer.load_state_dict(saved["own"])
        return
    for name, value in saved["attributes"].items():
        setattr(layer, name, _revive(value, getattr(layer, name, None)))


def _plain(value: Any) -> Any:
    """``value`` as plain data of its own, or ``_NOT_PLAIN``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.random.Generator):
        return {GENERATOR: value.bit_generator.state}
    if isinstance(value, np.ndarray):
        return value.copy() if value.dtype != object else _NOT_PLAIN
    if isinstance(value, np.generic):
        return {"__numpy_scalar__": np.array(value)}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        if any(item is _NOT_PLAIN for item in items):
            return _NOT_PLAIN
        return {"__tuple__": items} if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        items_of = {key: _plain(item) for key, item in value.items()}
        return _NOT_PLAIN if any(item is _NOT_PLAIN for item in items_of.values()) else items_of
    return _NOT_PLAIN


def _revive(value: Any, current: Any) -> Any:
    if isinstance(value, dict):
        if GENERATOR in value:
            generator = current if isinstance(current, np.random.Generator) else np.random.default_rng()
            generator.bit_generator.state = value[GENERATOR]
            return generator
        if "__numpy_scalar__" in value:
            return value["__numpy_scalar__"][()]
        if "__tuple__" in value:
            return tuple(_revive(item, None) for item in value["__tuple__"])
        return {key: _revive(item, None) for key, item in value.items()}
    if isinstance(value, list):
        return [_revive(item, None) for item in value]
    return value.copy() if isinstance(value, np.ndarray) else value
