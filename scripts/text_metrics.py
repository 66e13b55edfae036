"""Figures that compare what a policy wrote before and after training on the same held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from scripts.sampling import Samples
from textenvs.preference import Judged


class TextJudge(Protocol):
    """Scores whole texts, apart from the reward that was trained on."""

    def score(self, texts: Any) -> np.ndarray:
        """``[N]``, higher is better."""


def distinct_bigrams_of_all(samples: Samples) -> float:
    """Different bigrams of token ids divided by bigrams, over all completions together (Li et al. 2016, distinct-2).

    Unlike an average over single texts it also falls when all texts become alike. It depends on how many texts there
    are, so it is compared between equal numbers only. 1 if there is no bigram.
    """
    bigrams = [
        pair
        for row, length in zip(samples.completions, samples.mask.sum(1), strict=True)
        for pair in zip(row[: length - 1].tolist(), row[1:length].tolist(), strict=True)
    ]
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def perplexity_under(ref_logprobs: np.ndarray, mask: np.ndarray) -> float:
    """``exp`` of the mean negative log-probability per token: ``ref_logprobs [N, T]`` nats, over ``mask [N, T]``."""
    return math.exp(-float(ref_logprobs[mask].mean()))


def kl_per_sequence(samples: Samples, ref_logprobs: np.ndarray) -> float:
    """Mean over texts of ``sum_t (log pi - log pi_ref)``, nats: the k1 estimate on fresh samples."""
    return float(np.where(samples.mask, samples.logprobs - ref_logprobs, 0.0).sum(1).mean())


def win_rate(scores: np.ndarray, rivals: np.ndarray) -> float:
    """Share of places where ``scores [N]`` beat ``rivals [N]``; ties count half."""
    return float(((scores > rivals) + 0.5 * (scores == rivals)).mean())


def compare(
    before: Samples,
    after: Samples,
    *,
    score: Callable[[Samples], Judged],
    reference: Callable[[np.ndarray, np.ndarray], np.ndarray],
    judge: TextJudge | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of both, and the samples side by side.

    Args:
        before: what the starting model wrote.
        after: what the tuned model wrote for the same prompts, in the same order.
        score: what the reward that was trained on says of samples; of several scorers the figures also have each
            member's mean score and ``score_disagreement``, the mean over texts of the standard deviation over members.
        reference: ``(prompts, completions) -> [N, T]`` log-probs under the starting model, nats.
        judge: None leaves the judge's figures None.

    Raises:
        ValueError: if the prompts differ.
    """
    if before.openings != after.openings:
        raise ValueError("before and after were written for different prompts; they cannot be compared")
    figures: dict[str, Any] = {}
    columns: dict[str, np.ndarray | None] = {}
    for name, samples in (("before", before), ("after", after)):
        ref_logprobs = reference(samples.prompts, samples.completions)
        scored = score(samples)
        columns[f"score_{name}"] = scored.scores
        judged = columns[f"judge_{name}"] = None if judge is None else judge.score(samples.texts)
        figures[f"score_{name}"] = float(scored.scores.mean())
        if len(scored.members) > 1:
            columns[f"score_std_{name}"] = scored.std
            figures[f"score_disagreement_{name}"] = float(scored.std.mean())
            figures |= {f"score_{name}/{member}": float(one.mean()) for member, one in scored.members.items()}
        figures[f"judge_{name}"] = None if judged is None else float(judged.mean())
        figures[f"perplexity_{name}"] = perplexity_under(ref_logprobs, samples.mask)
        figures[f"distinct2_{name}"] = distinct_bigrams_of_all(samples)
        figures[f"mean_length_{name}"] = float(samples.mask.sum(1).mean())
        if name == "after":
            figures["kl_per_sequence"] = kl_per_sequence(samples, ref_logprobs)
    judged_before, judged_after = columns["judge_before"], columns["judge_after"]
    figures["judge_win_rate"] = (
        None if judged_before is None or judged_after is None else win_rate(judged_after, judged_before)
    )
    table = [
        {"prompt": opening, "before": old, "after": new}
        | {name: None if column is None else float(column[i]) for name, column in columns.items()}
        for i, (opening, old, new) in enumerate(zip(before.openings, before.endings, after.endings, strict=True))
    ]
    return figures, table
