"""The preference reward: finished texts are scored, and the score is added at the action that ended the episode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import ArrayLike, NDArray

from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.tokens.rows import Columns, Floats, Ids, TokenRows, last_action_index
from textenvs.wrappers.interfaces import Scorer
from textenvs.wrappers.scorers import Scorers

COMBINATIONS = ("mean", "worst", "uncertainty")
UNCERTAINTY_COEF = 0.1
"""Coefficient of the variance, per reward unit."""


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """Scores of N finished rows, in reward units."""

    scores: Floats  # [N] the members' scores combined: the reward
    std: Floats  # [N] standard deviation over the members, without their weights; 0 for one member
    members: dict[str, Floats]  # [N] by member name; NaN where a member does not apply


class PreferenceReward(TokenVectorWrapper):
    """Adds ``scorer(prompt, completion)`` at the action that ended the episode, by eos or by budget, exactly once.

    | Reward | + score on the last action, + 0 on all others; reward units of the scorer                         |
    | Info   | score[i] and score_std[i], with masks _score[i], _score_std[i] True where an episode ended (in    |
    |        | final_info too under SAME_STEP); score_std is the standard deviation over scorers, 0 for one      |

    Several scorers are an ensemble, whose members answer the same question in the same unit (as reward models
    calibrated on the same texts do), or, with `weights`, a mixture of different things. A listed ensemble counts as its
    ``members``.

    Args:
        envs: a `TokenVectorEnv` or one of textenvs' wrappers.
        scorer: one scorer or a list. A scorer is a callable with some of the parameters ``prompts``, ``completions``,
            ``finished``, ``completion_ids``, and the columns that the prompts' rows have beside the prompt. They are
            passed by name, as in TRL: lists with an entry a text. Texts have no special tokens; ``finished`` is True
            where a text has its end-of-text token, in contrast to those that the budget cut. It returns a number a
            text, or None where it does not apply (a text to which none applies has score 0), and may be a coroutine
            function. Or it has a method ``score_tokens(prompts [N, P], completions [N, T]) -> [N]`` on token ids padded
            with PAD = -1, which is preferred if it has no attribute ``tokenizer``, or the environment's own.
        combine: "mean", "worst" or "uncertainty"; see `combine_scores`.
        weights: with "mean": one factor for each scorer listed, e.g. ``(1.0, -0.1)`` for a reward model and a word
            count; the sum is not divided by theirs. An ensemble's weight is split evenly. 0 only reports a score.
        uncertainty_coef: with "uncertainty": coefficient of the variance, per reward unit.
        names: of the scorers listed, for metrics; None: their own.

    Raises:
        ValueError: no scorer; a scorer that can be called in neither way, or asks for a column that no row has;
            conflicting settings; later, a `textenvs.wrappers.scorers.RewardError`.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        scorer: Scorer | Sequence[Scorer],
        *,
        combine: str = "mean",
        weights: Sequence[float] | None = None,
        uncertainty_coef: float = UNCERTAINTY_COEF,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(envs)
        base = self.base
        self._scorers = Scorers(
            scorer, tokenizer=base.tokenizer, eos_token_id=base.eos_token_id, names=names, columns=base.column_names
        )
        check_combination(combine, weights, uncertainty_coef, num_scorers=self._scorers.num_listed)
        self._combine, self._uncertainty_coef = combine, uncertainty_coef
        self.weights = None if weights is None else self._scorers.member_weights(weights)
        """One factor for each of ``scorers``; None: their mean is paid."""

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """The scorers, in the order listed; an ensemble is its members."""
        return self._scorers.scorers

    @property
    def is_ensemble(self) -> bool:
        """Whether there are several scorers that answer the same question: they have no weights."""
        return self.weights is None and len(self._scorers.names) > 1

    @property
    def held_out(self) -> list[str]:
        """Names of the members of weight 0, whose scores are only reported."""
        return [name for name, weight in zip(self._scorers.names, self.weights or (), strict=False) if weight == 0]

    def step(self, actions: Ids) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the inner environment, and add the scores of the episodes that end."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        finished = self.base.finished
        if finished.indices.size:
            scored = self.score_rows(finished.prompts, finished.completions, finished.columns)
            scores, spread = np.zeros((2, self.num_envs), dtype=np.float32)
            scores[finished.indices], spread[finished.indices] = scored.scores, scored.std
            rewards = rewards + scores
            for key, values in (("score", scores), ("score_std", spread)):
                self._add_entry(infos, key, values, terminated | truncated)
        return observations, rewards, terminated, truncated, infos

    def play(
        self, prompts: Ids, completions: Ids, logprobs: ArrayLike | None = None, *, columns: Columns = ()
    ) -> TokenRows:
        """See `TokenVectorEnv.play`; all rows are scored in one call."""
        rows = super().play(prompts, completions, logprobs, columns=columns)
        scored = self.score_rows(rows.prompts, rows.completions, columns)
        scores, rewards = scored.scores, rows.rewards.copy()
        rewards[np.arange(len(scores)), last_action_index(rows.mask)] += scores
        return replace(rows, rewards=rewards, scores=scores, score_std=scored.std, member_scores=scored.members)

    def score_rows(self, prompts: Ids, completions: Ids, columns: Columns = ()) -> ScoredRows:
        """Score finished rows ``[N, P]`` and ``[N, T]``, padded with PAD; ``columns`` as in `TokenVectorEnv.play`."""
        each = self._scorers(prompts, completions, columns)
        combined = combine_scores(each, self._combine, weights=self.weights, uncertainty_coef=self._uncertainty_coef)
        members = dict(zip(self._scorers.names, each, strict=True))
        return ScoredRows(scores=combined, std=score_spread(each), members=members)


def combine_scores(
    scores: Floats,
    combine: str = "mean",
    *,
    weights: Sequence[float] | None = None,
    uncertainty_coef: float = UNCERTAINTY_COEF,
) -> Floats:
    """One score ``[N]`` from the scores ``[K, N]`` of K members.

        mean         (1/K) sum_k s_k; with weights sum_k w_k s_k, not divided by the weights' sum
        worst        min_k s_k
        uncertainty  mean - uncertainty_coef * (1/K) sum_k (s_k - mean)^2

    over the K members that apply to a text, which those with NaN do not; 0 where none does.

    Source: Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization" (arXiv:2310.02743): R_mu, R_WCO,
    R_UWO. The default coefficient, per reward unit and 0 or more, is from the authors' published PPO configuration.

    Raises:
        ValueError: as `check_combination`, or the scores are not ``[K, N]`` with K >= 1.
    """
    if scores.ndim != 2 or not len(scores):
        raise ValueError(f"scores: expected [K, N] with K of at least 1, received shape {scores.shape}")
    check_combination(combine, weights, uncertainty_coef, num_scorers=len(scores))
    exact = _where_they_apply(scores)
    combined = exact.mean(axis=0)
    if combine == "worst":
        combined = exact.min(axis=0)
    elif combine == "uncertainty":
        combined = combined - uncertainty_coef * exact.var(axis=0)
    elif weights is not None:
        combined = np.asarray(weights, dtype=np.float64) @ np.ma.filled(exact, 0.0)
    return np.ma.filled(combined, 0.0).astype(np.float32)


def score_spread(scores: Floats) -> Floats:
    """``[N]``, reward units: standard deviation over the K members of ``scores [K, N]``, by K as in "uncertainty"."""
    return np.ma.filled(_where_they_apply(scores).std(axis=0), 0.0).astype(np.float32)


def mean_where_it_applies(scores: Floats) -> float | None:
    """Mean of one member's ``scores [N]``, reward units, without those that are NaN; None if all are."""
    applies = scores[~np.isnan(scores)]
    return float(applies.mean()) if applies.size else None


def _where_they_apply(scores: Floats) -> NDArray[np.float64]:
    """``[K, N]``, masked where NaN."""
    exact = scores.astype(np.float64)
    return np.ma.masked_invalid(exact) if np.isnan(exact).any() else exact


def check_combination(
    combine: str, weights: Sequence[float] | None, uncertainty_coef: float, *, num_scorers: int
) -> None:
    """Check the settings of `combine_scores`.

    Raises:
        ValueError: an unknown ``combine``; weights without "mean", of another number than the scorers', not finite, or
            all 0; a coefficient that is negative, not finite, or without "uncertainty".
    """
    if combine not in COMBINATIONS:
        raise ValueError(f"combine: expected one of {', '.join(COMBINATIONS)}, received {combine!r}")
    if not (math.isfinite(uncertainty_coef) and uncertainty_coef >= 0):
        raise ValueError(f"uncertainty_coef: expected a finite number of 0 or more, received {uncertainty_coef!r}")
    if combine != "uncertainty" and uncertainty_coef != UNCERTAINTY_COEF:
        raise ValueError(f'uncertainty_coef: expected combine="uncertainty" beside it, received combine={combine!r}')
    if weights is None:
        return
    if combine != "mean":
        raise ValueError(f'weights: expected combine="mean", received combine={combine!r}; leave one of them out')
    if len(weights) != num_scorers:
        raise ValueError(f"weights: expected one for each of the {num_scorers} scorers, received {len(weights)}")
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise ValueError(f"weights: expected finite numbers that are not all 0, received {list(weights)}")
