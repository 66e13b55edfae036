"""Which attributes of an object are plain data (numbers, strings, arrays, generators), copied out and put back.

Nothing is pickled. What is neither plain nor known to hold no state is named, so that nobody mistakes a part for the
whole.
"""

from __future__ import annotations

import enum
import types
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv, VectorWrapper

GENERATOR = "__numpy_generator__"
ARRAY = "__array_of_bytes__"
NOT_PLAIN = "__not_plain__"
"""Stands for what is no plain data."""
SKIPPED = {"metadata", "spec", "_cached_spec", "_action_space", "_observation_space", "_metadata", "env_fns", "env"}
STATELESS = (
    gym.Space,
    EnvSpec,
    enum.Enum,
    type,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.ModuleType,
    np.dtype,
    np.ufunc,
)


def attributes(owner: Any) -> dict[str, Any]:
    """The plain attributes of ``owner``, copied."""
    found = {name: plain(value) for name, value in vars(owner).items() if name not in SKIPPED}
    return {name: value for name, value in found.items() if not is_hidden(value)}


def hidden(owner: Any) -> list[str]:
    """Names of ``owner``'s attributes that may hold state and are no plain data."""
    return [
        name
        for name, value in vars(owner).items()
        if name not in SKIPPED and not _stateless(value) and is_hidden(plain(value))
    ]


def hidden_in(env: gym.Env | VectorEnv) -> list[str]:
    """As ``hidden``, over all layers of wrappers; a layer with ``state_dict`` and ``load_state_dict`` hides nothing."""
    found, layer = [], env
    while True:
        if not speaks_for_itself(layer):
            found += [f"{type(layer).__name__}.{name}" for name in hidden(layer)]
        if not isinstance(layer, (gym.Wrapper, VectorWrapper)):
            return found
        layer = layer.env


def speaks_for_itself(owner: Any) -> bool:
    """Whether ``owner`` has ``state_dict`` and ``load_state_dict``."""
    return hasattr(type(owner), "state_dict") and hasattr(type(owner), "load_state_dict")


def is_hidden(value: Any) -> bool:
    """Whether ``plain`` gave up."""
    return isinstance(value, str) and value == NOT_PLAIN


def plain(value: Any) -> Any:
    """``value`` as plain data of its own, or ``NOT_PLAIN``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.random.Generator):
        return {GENERATOR: value.bit_generator.state}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biufc":
            return value.copy()
        if value.dtype.hasobject:
            return NOT_PLAIN
        # Text and dates (the map of FrozenLake, say) as their bytes: a checkpoint holds numbers only.
        return {ARRAY: np.array(bytearray(value.tobytes())), "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return {"__numpy_scalar__": np.array(value)}
    if isinstance(value, (list, tuple, deque)):
        items = [plain(item) for item in value]
        if any(map(is_hidden, items)):
            return NOT_PLAIN
        if isinstance(value, deque):
            return {"__deque__": items, "maxlen": value.maxlen}
        return {"__tuple__": items} if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        items_of = {key: plain(item) for key, item in value.items()}
        return NOT_PLAIN if any(map(is_hidden, items_of.values())) else items_of
    return NOT_PLAIN


def revive(value: Any, current: Any) -> Any:
    """The object that ``plain`` was given; a generator is ``current`` itself, put into the saved state."""
    if isinstance(value, dict):
        if GENERATOR in value:
            generator = current if isinstance(current, np.random.Generator) else np.random.default_rng()
            generator.bit_generator.state = value[GENERATOR]
            return generator
        if ARRAY in value:
            return np.frombuffer(bytes(value[ARRAY]), value["dtype"]).reshape(value["shape"]).copy()
        if "__numpy_scalar__" in value:
            return value["__numpy_scalar__"][()]
        if "__tuple__" in value:
            return tuple(revive(item, None) for item in value["__tuple__"])
        if "__deque__" in value:
            return deque((revive(item, None) for item in value["__deque__"]), value["maxlen"])
        return {key: revive(item, None) for key, item in value.items()}
    if isinstance(value, list):
        return [revive(item, None) for item in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _stateless(value: Any) -> bool:
    """Whether ``value`` is known to hold no state of the task: a space, a function, a window to draw on."""
    return isinstance(value, STATELESS) or type(value).__module__.partition(".")[0] == "pygame"
