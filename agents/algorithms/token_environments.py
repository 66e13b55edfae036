"""Whatever a user calls a token environment, to the vector environment that texts are collected in."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from agents.agent import EnvLike
from textenvs.envs.base import TokenVectorBase
from textenvs.envs.scalar import TokenEnv
from textenvs.envs.wrapper import TokenVectorWrapper

TokenVectorLike = TokenVectorBase | TokenVectorWrapper


def is_token_environment(env: object) -> bool:
    """True for an id, an environment or a vector environment whose actions are tokens.

    An id counts if its namespace is ``textenvs``; of one's own, pass the environment: ``gym.make_vec(id, ...)``.
    """
    if isinstance(env, str):
        return env.rpartition(":")[2].startswith("textenvs/")
    unwrapped = getattr(env, "unwrapped", None)
    return isinstance(unwrapped, TokenVectorBase | TokenEnv)


def token_vector(env: EnvLike, num_envs: int, group_size: int) -> TokenVectorLike:
    """The vector environment for ``env``.

    Args:
        env: an id, a `TokenEnv` (its registered id is built again as a vector of ``num_envs``; without one its single
            row is the batch), a `TokenVectorEnv` or a wrapper of it.
        num_envs: sub-environments of what is built from an id.
        group_size: texts of each prompt in a row; an environment that has not begun is set to it.

    Raises:
        ValueError: if it is no token environment, is wrapped by something that hides `play`, or has begun with other
            groups.
    """
    if isinstance(env, gym.Env) and isinstance(env.unwrapped, TokenEnv):
        _refuse_wrappers(env)
        if env.spec is not None:
            return _made(env.spec.id, num_envs, group_size, dict(env.spec.kwargs))
        env = env.unwrapped.envs
    if isinstance(env, str):
        if not is_token_environment(env):
            raise ValueError(f"env: expected the id of a token environment (textenvs/...), received {env!r}")
        return _made(env, num_envs, group_size, {})
    if not isinstance(env, TokenVectorBase | TokenVectorWrapper):
        raise ValueError(
            "env: expected an id, a TokenEnv, a TokenVectorEnv or one of textenvs' wrappers, received "
            f"{type(env).__name__}: other wrappers hide the batch path"
        )
    base = env.unwrapped
    assert isinstance(base, TokenVectorBase)
    if base.group_size != group_size:
        base.set_group_size(group_size)
    return env


def _refuse_wrappers(env: gym.Env[Any, Any]) -> None:
    """Raise ValueError for wrappers of a scalar environment that would be lost, that is all but `gymnasium.make`'s."""
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, OrderEnforcing | PassiveEnvChecker):
            raise ValueError(
                f"env: expected none of Gymnasium's wrappers, received {type(env).__name__}: whole texts pass it by, "
                "so pay in a scorer, and bound texts by max_new_tokens"
            )
        env = env.env


def _made(env_id: str, num_envs: int, group_size: int, kwargs: dict[str, Any]) -> TokenVectorLike:
    kwargs = {"group_size": group_size, **kwargs}
    envs: VectorEnv[Any, Any, Any] = gym.make_vec(env_id, num_envs=num_envs, **kwargs)
    assert isinstance(envs, TokenVectorBase | TokenVectorWrapper)
    return envs
