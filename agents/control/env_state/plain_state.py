"""Copy the plain attributes of an object (numbers, strings, arrays, generators) and convert them back, without pickle.

Attributes that are neither plain nor known to be stateless are reported, so a partial copy never looks complete.
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
"""Placeholder for a value that is not plain data."""
SKIPPED = {"metadata", "spec", "_cached_spec", "_action_space", "_observation_space", "_metadata", "env_fns", "env"}
FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, np.ufunc)
STATELESS = (gym.Space, EnvSpec, enum.Enum, type, types.ModuleType, np.dtype, *FUNCTIONS)


def attributes(owner: object) -> dict[str, Any]:
    """The plain attributes of ``owner``, copied."""
    found = {name: plain(value) for name, value in vars(owner).items() if name not in SKIPPED}
    return {name: value for name, value in found.items() if not is_hidden(value)}


def layers(env: gym.Env | VectorEnv) -> list[Any]:
    """``env`` and what its wrappers wrap, from the outside to the inside."""
    found: list[Any] = [env]
    while isinstance(found[-1], (gym.Wrapper, VectorWrapper)):
        found.append(found[-1].env)
    return found


def hidden_in(env: gym.Env | VectorEnv) -> list[str]:
    """Attributes that may hold state but are not plain data, of all layers without a state dict of their own."""
    return [
        f"{type(layer).__name__}.{name}"
        for layer in layers(env)
        if not has_state_dict(layer)
        for name, value in vars(layer).items()
        if name not in SKIPPED and not _stateless(value) and is_hidden(plain(value))
    ]


def has_state_dict(owner: object) -> bool:
    """Whether ``owner`` has ``state_dict`` and ``load_state_dict``."""
    return hasattr(type(owner), "state_dict") and hasattr(type(owner), "load_state_dict")


def is_hidden(value: object) -> bool:
    """Whether ``plain`` could not represent the value."""
    return isinstance(value, str) and value == NOT_PLAIN


def plain(value: object) -> object:
    """``value`` copied as plain data, or ``NOT_PLAIN``."""
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


def from_plain(value: object, current: object) -> Any:  # Any: the inverse of ``plain``, of whatever type was saved
    """Invert ``plain``; a saved generator state is loaded into ``current`` if that is a generator."""
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
            return tuple(from_plain(item, None) for item in value["__tuple__"])
        if "__deque__" in value:
            return deque((from_plain(item, None) for item in value["__deque__"]), value["maxlen"])
        return {key: from_plain(item, None) for key, item in value.items()}
    if isinstance(value, list):
        return [from_plain(item, None) for item in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _stateless(value: Any) -> bool:
    """Whether ``value`` is known to hold no state of the task: a space, a function, a pygame window."""
    return isinstance(value, STATELESS) or type(value).__module__.partition(".")[0] == "pygame"
