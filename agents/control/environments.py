"""Any way of naming a task, to a vector environment with a known autoreset mode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from agents.control.classic import base as vector_classic

EnvLike = str | gym.Env | VectorEnv


def make_vector(env: EnvLike, num_envs: int, **kwargs: Any) -> VectorEnv:
    """A vector environment for an id, an environment or a vector environment.

    An id gets its fastest form that resets in the same step, so that no step is wasted
    (``agents.control.classic.base.make_vector``). An ``Env`` becomes a vector of one; a ``VectorEnv`` is taken as it
    is.

    Args:
        env: ``"CartPole-v1"``, ``"my_module:MyEnv-v0"``, an ``Env`` or a ``VectorEnv``.
        num_envs: how many copies of an id, >= 1.
        kwargs: for the environment's constructor, where ``env`` is an id.

    Raises:
        ValueError: for anything else, for a vector environment that does not say how it resets, or ``num_envs`` < 1.
        gymnasium.error.Error: if the id is not registered (the message names close ones).
        ModuleNotFoundError: if an id's module cannot be found.
    """
    if isinstance(env, VectorEnv):
        autoreset_mode(env)
        return env
    if isinstance(env, gym.Env):
        return SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.SAME_STEP)
    if not isinstance(env, str):
        raise ValueError(f"env must be an id, a gymnasium Env or VectorEnv, received {type(env).__name__}")
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, received {num_envs}")
    return vector_classic.make_vector(env, num_envs, **kwargs)


def autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    """How ``envs`` resets ended episodes.

    Raises:
        ValueError: if its metadata does not say.
    """
    mode = envs.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(f"{envs} must declare metadata['autoreset_mode'] as a gymnasium AutoresetMode, found {mode!r}")
    return mode
