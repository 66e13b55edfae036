"""The preference reward: finished texts are scored, and the score is paid on the action that ended the episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from textenvs.checks import as_numbers
from textenvs.rows import TokenRows, last_action_index
from textenvs.text import decode_rows, same_tokenizer
from textenvs.wrapper import TokenVectorWrapper


class PreferenceReward(TokenVectorWrapper):
    """Pays ``scorer(prompt, completion)`` on the action that ended the episode, by eos or by budget, exactly once.

    | Reward | + score on the last action, + 0 on all others; reward units of the scorer                     |
    | Info   | score[i], with mask _score[i] True where an episode ended (in final_info too under SAME_STEP)  |

    Args:
        envs: a `TokenVectorEnv` or one of textenvs' wrappers.
        scorer: one scorer or a list, whose mean is paid. A scorer is a callable
            ``(prompts: list[str], completions: list[str]) -> [N]`` on text without special tokens, or has a method
            ``score_tokens(prompts [N, P], completions [N, T]) -> [N]`` on token ids padded with PAD = -1. The method is
            preferred if the scorer has no attribute ``tokenizer``, or if that is the environment's own; with another
            tokenizer the text is handed over, to be tokenised anew.

    Raises:
        ValueError: no scorer; a scorer that can be called in neither way; later, a score that is NaN, infinite or of
            the wrong shape. The message names the scorer.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], scorer: Any) -> None:
        super().__init__(envs)
        listed = isinstance(scorer, Sequence)
        scorers = list(scorer) if listed else [scorer]
        if not scorers:
            raise ValueError("scorer: received an empty list; at least one scorer is needed")
        self._scorers = [
            (f"scorer[{index}] ({_name(one)})" if listed else f"scorer {_name(one)}", one)
            for index, one in enumerate(scorers)
        ]
        self._reads_tokens = [self._wants_tokens(name, one) for name, one in self._scorers]

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment below, plus the scores of the episodes that end."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        finished = self.base.finished
        if finished.indices.size:
            scores = np.zeros(self.num_envs, dtype=np.float32)
            scores[finished.indices] = self.score(finished.prompts, finished.completions)
            rewards = rewards + scores
            self._tell(infos, "score", scores, terminated | truncated)
        return observations, rewards, terminated, truncated, infos

    def play(
        self, prompts: NDArray[np.int64], completions: NDArray[np.int64], logprobs: NDArray[Any] | None = None
    ) -> TokenRows:
        """See `TokenVectorEnv.play`; all rows are scored in one call."""
        rows = super().play(prompts, completions, logprobs)
        scores = self.score(rows.prompts, rows.completions)
        rewards = rows.rewards.copy()
        rewards[np.arange(len(scores)), last_action_index(rows.mask)] += scores
        return replace(rows, rewards=rewards, scores=scores)

    def score(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores ``[N]`` of finished rows: the mean of the scorers.

        Args:
            prompts: ``[N, P]`` padded with PAD.
            completions: ``[N, T]`` padded with PAD.

        Raises:
            ValueError: a scorer returned NaN, an infinity or another shape.
        """
        return self.score_each(prompts, completions).mean(axis=0)

    def score_each(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores ``[K, N]`` of each of the K scorers; otherwise as `score`."""
        texts = None if all(self._reads_tokens) else decode_rows(self.base.tokenizer, prompts, completions)
        scores = []
        for (name, scorer), reads_tokens in zip(self._scorers, self._reads_tokens, strict=True):
            values = scorer.score_tokens(prompts, completions) if reads_tokens else scorer(*texts or ([], []))
            scores.append(as_numbers(values, (len(completions),), name))
        return np.stack(scores)

    def _wants_tokens(self, name: str, scorer: Any) -> bool:
        """Whether `scorer` gets token ids (True) or text (False); raises if it can get neither."""
        own = self.base.tokenizer
        theirs = getattr(scorer, "tokenizer", None)
        if hasattr(scorer, "score_tokens") and (theirs is None or (own is not None and same_tokenizer(theirs, own))):
            return True
        if not callable(scorer):
            what = "its tokenizer is not the environment's, and it" if hasattr(scorer, "score_tokens") else "it"
            raise ValueError(f"{name}: {what} cannot be called on text; received {scorer!r:.200}")
        if own is None:
            raise ValueError(f"{name}: it reads text, and the environment has no tokenizer to decode with")
        return False


def _name(scorer: Any) -> str:
    return str(getattr(scorer, "__name__", None) or type(scorer).__name__)
