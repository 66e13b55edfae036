"""The scalar view: one sub-environment of a vector environment as a plain `gymnasium.Env`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from textenvs.envs.base import TokenVectorBase
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.tokens.rows import Ids


class TokenEnv(gym.Env[Ids, np.int64]):
    """One text that grows by one token a step: `TokenVectorEnv` and its wrappers as a single environment.

    | Observation | Box(-1, V-1, (L,), int64): prompt and tokens so far, right-padded with PAD = -1               |
    | Action      | Discrete(V): the next token id                                                               |
    | Reward      | that of the vector environment and wrappers                                                  |
    | Termination | the end-of-text token, or the budget                                                         |
    | Truncation  | never, unless budget="truncate"                                                              |
    | Info        | stop_reason in {"", "eos", "length"}; kl, nats, of the action; score and score_std at the    |
    |             | last action; the columns of the prompt's row                                                 |

    ``envs``, wrapped or not, is available as ``env.unwrapped.envs``, for `hand_logprobs` for instance.

    Raises:
        ValueError: more than one sub-environment, or another autoreset mode.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - as in Gymnasium

    def __init__(self, envs: TokenVectorBase | TokenVectorWrapper) -> None:
        if envs.num_envs != 1 or envs.metadata["autoreset_mode"] is not AutoresetMode.DISABLED:
            raise ValueError(
                f"expected one sub-environment and autoreset DISABLED, received {envs.num_envs} and "
                f"{envs.metadata['autoreset_mode']}"
            )
        self.envs = envs
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Ids, dict[str, Any]]:
        """Start an episode; `seed` as in `TokenVectorEnv.reset`. There are no options."""
        observations, infos = self.envs.reset(seed=seed)
        self._np_random = self.envs.np_random  # one generator, the vector environment's own
        self._np_random_seed = self.envs.np_random_seed
        return observations[0], _first(infos)

    def step(self, action: int | np.int64) -> tuple[Ids, float, bool, bool, dict[str, Any]]:
        """Append the token id `action`."""
        observations, rewards, terminated, truncated, infos = self.envs.step(np.asarray([action]))
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _first(infos)

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()


def _first(infos: dict[str, Any]) -> dict[str, Any]:
    """The info of sub-environment 0, in plain Python types."""
    return {key: value.tolist()[0] for key, value in infos.items() if not key.startswith("_") and infos[f"_{key}"][0]}
