"""Metrics of a policy's samples on held-out prompts, and the comparison of two sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from agents.evaluation.best_of_n_estimate import pass_at_k
from agents.evaluation.samples import Samples
from textenvs.tokens.rows import TokenRows
from textenvs.wrappers.preference import ScoredRows, mean_where_it_applies


@dataclass(frozen=True, kw_only=True)
class PassingRule:
    """When the first scorer calls a text right, and how many texts are written to see how often."""

    least: float = 1.0  # least score of a text that is right, reward units
    samples: int = 4  # texts that are sampled for each row, n of pass@k


@dataclass(frozen=True, kw_only=True, eq=False)
class Passed:
    """Which texts of P held-out rows are right. Rows to which the scorer does not apply are left out."""

    greedy: np.ndarray  # [P] bool, of the text of the likeliest tokens
    sampled: np.ndarray  # [P, n] bool

    @classmethod
    def of(cls, greedy: np.ndarray, sampled: np.ndarray, rule: PassingRule) -> Passed:
        """From the scorer's scores ``[P]`` and ``[P, n]``, NaN where it does not apply."""
        applies = ~np.isnan(np.column_stack([greedy, sampled])).all(axis=1)
        return cls(greedy=greedy[applies] >= rule.least, sampled=sampled[applies] >= rule.least)

    def metrics(self) -> dict[str, float | None]:
        """Accuracy of the likeliest tokens, and pass@k of the samples for k = 1, 2, 4, ... and n."""
        n = self.sampled.shape[1]
        every_k = sorted({1 << power for power in range(n.bit_length())} | {n})
        found = {"accuracy": self.greedy} | {f"pass_at_{k}": pass_at_k(self.sampled, k) for k in every_k}
        return {name: float(of.mean()) if of.size else None for name, of in found.items()}


class TextJudge(Protocol):
    """Scores whole texts, independently of the training reward."""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """``[N]``, higher is better."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessment:
    """Samples and their scores. The mean of the exact KL estimates the KL per sequence with less variance than that of
    the log-ratio (Amini et al. 2025, arXiv:2504.10637).
    """

    samples: Samples  # N texts of one policy
    scored: ScoredRows  # by the training reward, reward units
    judged: np.ndarray | None  # [N] log-odds by the independent judge; None without one
    ref_logprobs: np.ndarray  # [N, T] nats, of the tokens under the starting model
    kl: np.ndarray  # [N] nats: the exact KL to the starting model, summed over the states of each text
    passed: Passed | None = None  # which texts are right; None where right and wrong are not told apart

    @property
    def scores(self) -> np.ndarray:
        """``[N]`` reward units, by the training reward."""
        return self.scored.scores

    def metrics(self) -> dict[str, float | None]:
        """Means over the texts, accuracy and pass@k where right and wrong are told apart, perplexity, distinct bigrams.

        With several scorers also each member's mean score, ``score/NAME``, and ``score_disagreement``: the mean over
        texts of the standard deviation over members.
        """
        members = self.scored.members
        by_member: dict[str, float | None] = {}
        if len(members) > 1:
            by_member = {f"score/{name}": mean_where_it_applies(scores) for name, scores in members.items()}
            by_member = {"score_disagreement": float(self.scored.std.mean()), **by_member}
        return {
            "score": float(self.scores.mean()),
            **by_member,
            **({} if self.passed is None else self.passed.metrics()),
            "judge": None if self.judged is None else float(self.judged.mean()),
            "perplexity": perplexity_under(self.ref_logprobs, self.samples.mask),
            "distinct2": distinct_bigrams_of_all(self.samples),
            "mean_length": float(self.samples.mask.sum(1).mean()),
        }

    def win_rate(self, rival: Assessment) -> float | None:
        """Share of prompts on which the judge prefers these texts to those of ``rival``; ties count half.

        Raises:
            ValueError: if the prompts differ.
        """
        if self.samples.openings != rival.samples.openings:
            raise ValueError("expected samples of the same prompts, received different ones")
        return None if self.judged is None or rival.judged is None else win_rate(self.judged, rival.judged)


def distinct_bigrams_of_all(samples: Samples | TokenRows) -> float:
    """Distinct bigrams of token ids / bigrams, over all completions together (Li et al. 2016, distinct-2).

    Unlike an average over texts it also falls when texts become similar. It depends on the number of texts, so compare
    equal numbers only. 1 if there is no bigram.
    """
    bigrams = [
        pair
        for row in (tokens[own].tolist() for tokens, own in zip(samples.completions, samples.mask, strict=True))
        for pair in pairwise(row)
    ]
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def perplexity_under(ref_logprobs: np.ndarray, mask: np.ndarray) -> float:
    """``exp`` of the mean negative log-probability per token: ``ref_logprobs [N, T]`` nats, over ``mask [N, T]``."""
    return math.exp(-float(ref_logprobs[mask].mean()))


def win_rate(scores: np.ndarray, rivals: np.ndarray) -> float:
    """Share of rows in which ``scores [N]`` exceed ``rivals [N]``; ties count half."""
    return float(((scores > rivals) + 0.5 * (scores == rivals)).mean())


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of ``values [P]``, one per prompt; NaN for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def compare(before: Assessment, after: Assessment) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics of the starting and the tuned model on the same prompts, and a table of their samples side by side;
    ValueError if the prompts differ."""
    preferred = after.win_rate(before)
    both = {"before": before, "after": after}
    metrics: dict[str, Any] = {
        f"{name}_{side}": value for side, found in both.items() for name, value in found.metrics().items()
    }
    metrics |= {"kl_per_sequence": float(after.kl.mean()), "judge_win_rate": preferred}
    columns = {f"score_{side}": found.scores for side, found in both.items()}
    judged = {f"judge_{side}": found.judged for side, found in both.items()}
    texts = zip(before.samples.openings, before.samples.endings, after.samples.endings, strict=True)
    table = [
        {"prompt": opening, "before": old, "after": new}
        | {name: None if column is None else float(column[i]) for name, column in (columns | judged).items()}
        for i, (opening, old, new) in enumerate(texts)
    ]
    return metrics, table
