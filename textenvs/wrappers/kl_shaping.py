"""KL shaping: every token is charged for how much likelier the agent made it than a reference does."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import ArrayLike, NDArray

from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.tokens.checks import as_numbers, check_logprobs
from textenvs.tokens.rows import PAD, TokenRows, concatenate
from textenvs.wrappers.interfaces import Acting


class KLShaping(TokenVectorWrapper):
    """Takes ``beta * (log pi(a|s) - log pi_ref(a|s))`` from the reward of every token.

    The log-ratio's sum over an episode has the mean KL(pi || pi_ref) per sequence: the k1 estimate, one sample a token.
    Source: Ziegler et al. 2019, eq. 2 (arXiv:1909.08593).

    | Reward | - beta * kl on every action; unchanged with charge=False                                      |
    | Info   | kl[i], nats a token, the log-ratio before beta; mask _kl[i] False where the step was a reset  |

    ``log pi`` of the agent that acts comes from `hand_logprobs` before each step (or `play`'s argument), else from
    `acting`. With neither, the agent is priced as if it were certain (``log pi = 0``), an upper bound of the log-ratio.
    ``log pi_ref`` is of the reference's plain distribution: temperature 1, log-softmax in float32.

    Args:
        envs: a `TokenVectorEnv` or one of textenvs' wrappers.
        reference: a `transformers` causal LM, its directory or name, a
        `textenvs.wrappers.reference.CausalLMReference`, or any
            callable ``(prompts [N, P], completions [N, T]) -> [N, T]`` log-probs in nats. A model handed over is used
            as it is, not copied: what is trained must be another object.
        beta: price, reward units per nat, 0 or more; can be set later (adaptive controllers). With 0 the KL is
            reported and not charged.
        acting: ``(observations [N, L], actions [N]) -> [N]`` log-probs of the agent, nats, for agents that hand over
            none.
        charge: whether the reward pays the price. False: KL and beta are only told, for an agent that has the KL in
            its loss.

    Raises:
        ValueError: a beta below 0 or not finite; a reference whose tokenizer or vocabulary is not the environment's, or
            that has fewer positions than the longest prompt and the budget need.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        reference: Any,
        beta: float,
        *,
        acting: Acting | None = None,
        charge: bool = True,
    ) -> None:
        super().__init__(envs)
        self.beta = beta
        self.charge = charge
        self._acting = acting
        if isinstance(reference, str | os.PathLike) or hasattr(reference, "get_input_embeddings"):
            from textenvs.wrappers.reference import CausalLMReference

            reference = CausalLMReference(reference)
        if hasattr(reference, "check_fits"):
            reference.check_fits(self.base)
        elif not callable(reference):
            raise ValueError(f"reference: expected a causal LM, a directory or a callable, received {reference!r:.200}")
        self.reference = reference

    @property
    def beta(self) -> float:
        """Price of the KL, reward units per nat."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"beta: expected a finite number of 0 or more, received {value!r}")
        self._beta = float(value)

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment below, minus the price of each token."""
        base = self.base
        actions = base.check_actions(actions)
        running = base.running
        kl = np.zeros(self.num_envs, dtype=np.float32)
        kl[running] = self._acting_logprobs(actions)[running] - self._reference_logprobs(actions, running)[running]
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._tell(infos, "kl", kl, running)
        return observations, self._shaped(rewards, kl), terminated, truncated, infos

    def play(
        self, prompts: NDArray[np.int64], completions: NDArray[np.int64], logprobs: ArrayLike | None = None
    ) -> TokenRows:
        """See `TokenVectorEnv.play`; the reference scores all rows in batched passes."""
        rows = super().play(prompts, completions, logprobs)
        mask = rows.mask
        acting = rows.logprobs if rows.logprobs is not None else self._acting_rows(rows)
        scored = self.reference(rows.prompts, rows.completions)
        ref_logprobs = self._masked(scored, mask, "reference")
        check_logprobs(ref_logprobs, "reference")
        kl = acting - ref_logprobs
        rewards = self._shaped(rows.rewards, kl)
        return replace(rows, rewards=rewards, logprobs=acting, ref_logprobs=ref_logprobs, kl=kl)

    def state_dict(self) -> dict[str, Any]:
        """See `TokenVectorEnv.state_dict`; beta is in it."""
        return super().state_dict() | {"beta": self._beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `TokenVectorEnv.load_state_dict`."""
        if "beta" not in state:
            raise ValueError("the state lacks ['beta']: it is of an environment without KLShaping")
        super().load_state_dict(state)
        self.beta = state["beta"]

    def _shaped(self, rewards: NDArray[Any], kl: NDArray[np.float32]) -> NDArray[Any]:
        return rewards - np.float32(self._beta) * kl if self.charge else rewards

    def _acting_logprobs(self, actions: NDArray[np.int64]) -> NDArray[np.float32]:
        """``[num_envs]`` the agent's log-probs of the actions it is about to take."""
        handed = self.base.handed_logprobs
        if handed is not None:
            return handed
        if self._acting is None:
            return np.zeros(self.num_envs, dtype=np.float32)
        logprobs = as_numbers(self._acting(self.base.tokens.copy(), actions), (self.num_envs,), "acting")
        check_logprobs(logprobs, "acting")
        return logprobs

    def _acting_rows(self, rows: TokenRows) -> NDArray[np.float32]:
        """``[N, T]`` the same for whole rows that came without log-probs: one call of `acting` a column."""
        logprobs = np.zeros(rows.completions.shape, dtype=np.float32)
        if self._acting is None:
            return logprobs
        width = self.base.tokens.shape[1]
        for column in range(rows.completions.shape[1]):
            alive = rows.mask[:, column]
            if not alive.any():
                break
            joint = concatenate(rows.prompts[alive], rows.completions[alive, :column])[:, :width]
            joint = np.pad(joint, ((0, 0), (0, width - joint.shape[1])), constant_values=PAD)
            actions = rows.completions[alive, column]
            logprobs[alive, column] = as_numbers(self._acting(joint, actions), actions.shape, "acting")
        check_logprobs(logprobs, "acting")
        return logprobs

    def _reference_logprobs(self, actions: NDArray[np.int64], running: NDArray[np.bool_]) -> NDArray[np.float32]:
        """``[num_envs]`` the reference's log-probs of the actions; 0 where not running."""
        base = self.base
        logprobs = np.zeros(self.num_envs, dtype=np.float32)
        if hasattr(self.reference, "step"):
            logprobs[running] = self.reference.step(base.tokens, base.lengths, actions, running)[running]
        elif running.any():
            rows = np.flatnonzero(running)
            prompts, completions = base.split_rows(rows)
            lengths = base.lengths[rows] - base.prompt_lengths[rows]
            completions[np.arange(len(rows)), lengths] = actions[rows]
            completions = completions[:, : lengths.max() + 1]
            scored = self._masked(self.reference(prompts, completions), completions != PAD, "reference")
            logprobs[rows] = scored[np.arange(len(rows)), lengths]
        check_logprobs(logprobs, "reference")
        return logprobs

    @staticmethod
    def _masked(values: Any, mask: NDArray[np.bool_], name: str) -> NDArray[np.float32]:
        """`values` as float32, 0 outside of `mask`, where anything may stand, NaN too."""
        if hasattr(values, "detach"):
            values = values.detach().cpu().float().numpy()
        array = np.asarray(values)
        if array.shape != mask.shape:
            raise ValueError(f"{name}: expected log-probs of shape {mask.shape}, received shape {array.shape}")
        return as_numbers(np.where(mask, array, 0), mask.shape, name)
