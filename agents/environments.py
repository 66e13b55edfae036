"""Any way of naming a task, to a vector environment with a known autoreset mode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

EnvLike = str | gym.Env | VectorEnv


def make_vector(env: EnvLike, num_envs: int, **kwargs: Any) -> VectorEnv:
    """A vector environment for an id, an environment or a vector environment.

    An id that has a native vector form gets that one; any other runs ``num_envs`` copies in turn, resetting in the
    same step so that no step is wasted. An ``Env`` object becomes a vector of one; a ``VectorEnv`` is taken as it is.

    Args:
        env: ``"CartPole-v1"``, ``"my_module:MyEnv-v0"``, an ``Env`` or a ``VectorEnv``.
        num_envs: how many copies of an id, >= 1.
        kwargs: for the environment's constructor, where ``env`` is an id.

    Raises:
        ValueError: for anything else, for a vector environment that does not say how it resets, or ``num_envs`` < 1.
        gymnasium.error.Error: if the id is not registered (the message names close ones).
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
    spec = _spec(env)
    if spec.vector_entry_point is not None:
        envs = gym.make_vec(env, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)
    else:
        mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
        envs = gym.make_vec(env, num_envs=num_envs, vectorization_mode="sync", vector_kwargs=mode, **kwargs)
    autoreset_mode(envs)
    return envs


def autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    """How ``envs`` resets ended episodes.

    Raises:
        ValueError: if its metadata does not say.
    """
    mode = envs.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(f"{envs} must declare metadata['autoreset_mode'] as a gymnasium AutoresetMode, found {mode!r}")
    return mode


def _spec(env_id: str) -> gym.envs.registration.EnvSpec:
    """The registered spec of ``env_id``; a ``module:`` prefix is imported first, as ``gym.make`` does."""
    if ":" in env_id:
        module, env_id = env_id.split(":", 1)
        try:
            __import__(module)
        except ModuleNotFoundError as error:
            raise gym.error.NameNotFound(f"cannot import {module!r}, which {module}:{env_id} names: {error}") from error
    return gym.spec(env_id)
