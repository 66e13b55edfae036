"""KL shaping: a penalty on every token, the log-ratio of the agent's probability to a reference's."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import ArrayLike, NDArray

from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.tokens.rows import (
    PAD,
    Columns,
    Floats,
    Ids,
    Mask,
    TokenRows,
    as_numbers,
    check_logprobs,
    concatenate,
    masked,
)
from textenvs.wrappers.interfaces import Acting, ReferenceSource

BETA = 0.15
"""KL coefficient, reward units per nat: Ziegler et al. 2019 (arXiv:1909.08593)."""


def as_reference(source: Any) -> Any:  # what a user passes: checked where it is used
    """``source`` itself, or for a causal LM, its directory or name: a `CausalLMReference`."""
    if isinstance(source, str | os.PathLike) or hasattr(source, "get_input_embeddings"):
        from textenvs.wrappers.reference import CausalLMReference

        return CausalLMReference(source)
    return source


class KLShaping(TokenVectorWrapper):
    """Subtracts ``beta * (log pi(a|s) - log pi_ref(a|s))`` from the reward of every token.

    Summed over an episode the log-ratio has mean KL(pi || pi_ref) per sequence: the k1 estimate, one sample a token.
    Source: Ziegler et al. 2019, eq. 2 (arXiv:1909.08593).

    | Reward | - beta * kl on every action; unchanged with charge=False                                      |
    | Info   | kl[i], nats a token, the log-ratio before beta; mask _kl[i] False where the step was a reset  |

    ``log pi`` of the acting agent comes from `hand_logprobs` before each step (or `play`'s argument), else from
    `acting`, else it is 0, which gives an upper bound of the log-ratio. ``log pi_ref`` is of the reference's plain
    distribution: temperature 1, log-softmax in float32.

    Args:
        envs: a `TokenVectorEnv` or one of textenvs' wrappers.
        reference: a `transformers` causal LM, its directory or name, a `CausalLMReference`, or any callable
            ``(prompts [N, P], completions [N, T]) -> [N, T]`` log-probs in nats. A model is used without a copy: train
            another object.
        beta: see the property. None: 0.15, or what the preset of an agent suggests.
        charge: see the property.
        acting: ``(observations [N, L], actions [N]) -> [N]`` log-probs of the agent, nats, for steps without
            `hand_logprobs`.

    Raises:
        ValueError: a beta below 0 or not finite; a charge that is no bool; a reference whose tokenizer or vocabulary is
            not the environment's, or with fewer positions than the longest prompt and the budget need.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        reference: ReferenceSource,
        beta: float | None = None,
        *,
        acting: Acting | None = None,
        charge: bool = True,
    ) -> None:
        super().__init__(envs)
        self.beta, self.charge, self._acting = BETA if beta is None else beta, charge, acting
        self._beta_chosen = beta is not None
        source = as_reference(reference)
        if hasattr(source, "check_fits"):
            source.check_fits(self.base)
        elif not callable(source):
            raise ValueError(f"reference: expected a causal LM, a directory or a callable, received {source!r:.200}")
        self.reference = source

    @property
    def beta(self) -> float:
        """KL coefficient, reward units per nat, 0 or more; 0 only reports the KL. It may be set between steps."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        given: object = value
        if not (isinstance(given, Real) and math.isfinite(value) and value >= 0):
            raise ValueError(f"beta: expected a finite number of 0 or more, received {value!r}")
        self._beta, self._beta_chosen = float(value), True

    @property
    def suggested_beta(self) -> float | None:
        """Beta, if nobody chose it."""
        return None if self._beta_chosen else self._beta

    def suggest_beta(self, value: float | None) -> None:
        """Set beta to ``value``, or to 0.15 for None, unless it was chosen: by an argument, or by setting it."""
        if not self._beta_chosen:
            self.beta = BETA if value is None else value
            self._beta_chosen = False

    @property
    def charge(self) -> bool:
        """Whether the penalty is subtracted from the reward; False (the KL is in the agent's loss) only reports it."""
        return self._charge

    @charge.setter
    def charge(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"charge: expected True or False, received {value!r}")
        self._charge = value

    def step(self, actions: Ids) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the inner environment, and subtract each token's penalty."""
        actions = self.base.check_actions(actions)
        running = self.base.running
        kl = np.zeros(self.num_envs, dtype=np.float32)
        kl[running] = self._acting_logprobs(actions)[running] - self._reference_logprobs(actions, running)[running]
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._add_entry(infos, "kl", kl, running)
        return observations, self._shaped(rewards, kl), terminated, truncated, infos

    def play(
        self, prompts: Ids, completions: Ids, logprobs: ArrayLike | None = None, *, columns: Columns = ()
    ) -> TokenRows:
        """See `TokenVectorEnv.play`; the reference scores all rows in batched passes."""
        rows = super().play(prompts, completions, logprobs, columns=columns)
        acting = rows.logprobs if rows.logprobs is not None else self._acting_rows(rows)
        ref_logprobs = masked(self.reference(rows.prompts, rows.completions), rows.mask, "reference")
        check_logprobs(ref_logprobs, "reference")
        kl = acting - ref_logprobs
        rewards = self._shaped(rows.rewards, kl)
        return replace(rows, rewards=rewards, logprobs=acting, ref_logprobs=ref_logprobs, kl=kl)

    def state_dict(self) -> dict[str, Any]:
        """See `TokenVectorEnv.state_dict`; includes beta."""
        return super().state_dict() | {"beta": self._beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `TokenVectorEnv.load_state_dict`."""
        if "beta" not in state:
            raise ValueError("state: expected the key 'beta', received a state of an environment without KLShaping")
        super().load_state_dict(state)
        self.beta = state["beta"]

    def _shaped(self, rewards: NDArray[Any], kl: Floats) -> NDArray[Any]:
        return rewards - np.float32(self._beta) * kl if self._charge else rewards

    def _acting_logprobs(self, actions: Ids) -> Floats:
        """``[num_envs]`` the agent's log-probs of ``actions``."""
        if self.base.handed_logprobs is not None:
            return self.base.handed_logprobs
        if self._acting is None:
            return np.zeros(self.num_envs, dtype=np.float32)
        logprobs = as_numbers(self._acting(self.base.tokens.copy(), actions), (self.num_envs,), "acting")
        check_logprobs(logprobs, "acting")
        return logprobs

    def _acting_rows(self, rows: TokenRows) -> Floats:
        """``[N, T]`` the agent's log-probs of whole rows: one call of `acting` a column."""
        logprobs = np.zeros(rows.completions.shape, dtype=np.float32)
        if self._acting is None:
            return logprobs
        width = self.base.tokens.shape[1]
        for column in range(rows.completions.shape[1]):
            active = rows.mask[:, column]
            if not active.any():
                break
            joint = concatenate(rows.prompts[active], rows.completions[active, :column])[:, :width]
            joint = np.pad(joint, ((0, 0), (0, width - joint.shape[1])), constant_values=PAD)
            actions = rows.completions[active, column]
            logprobs[active, column] = as_numbers(self._acting(joint, actions), actions.shape, "acting")
        check_logprobs(logprobs, "acting")
        return logprobs

    def _reference_logprobs(self, actions: Ids, running: Mask) -> Floats:
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
            scored = masked(self.reference(prompts, completions), completions != PAD, "reference")
            logprobs[rows] = scored[np.arange(len(rows)), lengths]
        check_logprobs(logprobs, "reference")
        return logprobs
