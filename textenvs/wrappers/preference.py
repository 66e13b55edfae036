"""The preference reward: finished texts are scored, and the score is paid on the action that ended the episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import ArrayLike, NDArray

from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.tokens.rows import TokenRows, last_action_index
from textenvs.wrappers.combining import check_combination, combine_scores, score_spread
from textenvs.wrappers.scorers import Scorers


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the scorers say of N finished rows, in reward units."""

    scores: NDArray[np.float32]
    """``[N]`` the members' scores combined: what is paid."""
    std: NDArray[np.float32]
    """``[N]`` standard deviation over the members, each as it is, whatever its weight; 0 where there is one."""
    members: dict[str, NDArray[np.float32]]
    """``[N]`` for the name of each member."""


class PreferenceReward(TokenVectorWrapper):
    """Pays ``scorer(prompt, completion)`` on the action that ended the episode, by eos or by budget, exactly once.

    | Reward | + score on the last action, + 0 on all others; reward units of the scorer                         |
    | Info   | score[i] and score_std[i], with masks _score[i], _score_std[i] True where an episode ended (in    |
    |        | final_info too under SAME_STEP); score_std is how far several scorers are apart, 0 for one        |

    Several scorers are an ensemble, whose members are to answer the same question in the same unit (as reward models
    calibrated on the same texts do), or, with `weights`, a mixture of different things. An ensemble that stands in the
    list as one object is taken apart: each of its ``members`` counts as if it were listed.

    Args:
        envs: a `TokenVectorEnv` or one of textenvs' wrappers.
        scorer: one scorer or a list. A scorer is a callable
            ``(prompts: list[str], completions: list[str]) -> [N]`` on text without special tokens, or has a method
            ``score_tokens(prompts [N, P], completions [N, T]) -> [N]`` on token ids padded with PAD = -1. The method is
            preferred if the scorer has no attribute ``tokenizer``, or if that is the environment's own; with another
            tokenizer the text is handed over, to be tokenized anew. A callable with a parameter ``finished`` is also
            told, as a list of N bools, which texts ended by themselves: that the budget cut a text cannot be read off
            the text. An ensemble has ``members``, a list of scorers.
        combine: "mean", "worst" (the least score) or "uncertainty" (the mean less `uncertainty_coef` times the
            variance); see `textenvs.wrappers.combining.combine_scores`.
        weights: with "mean": one number for each scorer listed, by which its score is multiplied before all are added,
            e.g. ``(1.0, -0.1)`` for a reward model and a function that counts words. They need not sum to 1, and
            nothing divides by their sum. An ensemble's weight is shared out evenly among its members. 0 only watches.
        uncertainty_coef: with "uncertainty": price of the variance, per reward unit.
        names: of the scorers listed, for figures; None: their own.

    Raises:
        ValueError: no scorer; a scorer that can be called in neither way; settings that do not fit one another; later,
            a score that is NaN, infinite or of the wrong shape. The message names the scorer.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        scorer: Any,
        *,
        combine: str = "mean",
        weights: Sequence[float] | None = None,
        uncertainty_coef: float = 0.1,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(envs)
        base = self.base
        self._scorers = Scorers(scorer, tokenizer=base.tokenizer, eos_token_id=base.eos_token_id, names=names)
        check_combination(combine, weights, uncertainty_coef, num_scorers=self._scorers.num_listed)
        self._combine = combine
        self._weights = None if weights is None else self._scorers.shared_out(weights)
        self._uncertainty_coef = uncertainty_coef

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment below, plus the scores of the episodes that end."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        finished = self.base.finished
        if finished.indices.size:
            judged = self.judge(finished.prompts, finished.completions)
            scores, spread = np.zeros((2, self.num_envs), dtype=np.float32)
            scores[finished.indices], spread[finished.indices] = judged.scores, judged.std
            rewards = rewards + scores
            self._tell(infos, "score", scores, terminated | truncated)
            self._tell(infos, "score_std", spread, terminated | truncated)
        return observations, rewards, terminated, truncated, infos

    def play(
        self, prompts: NDArray[np.int64], completions: NDArray[np.int64], logprobs: ArrayLike | None = None
    ) -> TokenRows:
        """See `TokenVectorEnv.play`; all rows are scored in one call."""
        rows = super().play(prompts, completions, logprobs)
        judged = self.judge(rows.prompts, rows.completions)
        scores = judged.scores
        rewards = rows.rewards.copy()
        rewards[np.arange(len(scores)), last_action_index(rows.mask)] += scores
        return replace(rows, rewards=rewards, scores=scores, score_std=judged.std, member_scores=judged.members)

    def judge(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> Judged:
        """What is paid for finished rows, how far the scorers are apart, and what each says.

        Args:
            prompts: ``[N, P]`` padded with PAD.
            completions: ``[N, T]`` padded with PAD.

        Raises:
            ValueError: a scorer returned NaN, an infinity or another shape.
        """
        each = self.score_each(prompts, completions)
        combined = combine_scores(each, self._combine, weights=self._weights, uncertainty_coef=self._uncertainty_coef)
        members = dict(zip(self._scorers.names, each, strict=True))
        return Judged(scores=combined, std=score_spread(each), members=members)

    def score(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> NDArray[np.float32]:
        """The scores ``[N]`` alone of what `judge` says."""
        return self.judge(prompts, completions).scores

    def score_each(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores ``[K, N]`` of each of the K members, not combined; otherwise as `judge`."""
        return self._scorers(prompts, completions)
