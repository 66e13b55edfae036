"""How often an order is right: a reward model's, and a single human rater's, on pairs of rated snippets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reward_models.comparisons import RATINGS, preference_shares, rating_counts
from reward_models.movie_ratings import RatedSnippet


def gap_pairs(snippets: Sequence[RatedSnippet], gap: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``(better [M], worse [M])`` of all pairs of snippets whose mean ratings differ by at least ``gap``."""
    means = np.array([snippet.mean for snippet in snippets])
    better, worse = np.nonzero(means[:, None] - means[None, :] >= gap)
    return better, worse


def gap_accuracy(scores: np.ndarray, snippets: Sequence[RatedSnippet], gap: float = 1.0) -> float:
    """Share of the pairs of `gap_pairs` that ``scores [N]`` put in the order of the mean ratings; ties count half.

    Raises:
        ValueError: if no pair is that far apart, or the numbers of scores and snippets differ.
    """
    if len(scores) != len(snippets):
        raise ValueError(f"got {len(scores)} scores for {len(snippets)} snippets")
    better, worse = gap_pairs(snippets, gap)
    if not len(better):
        raise ValueError(f"no pair of the {len(snippets)} snippets differs by {gap} in its mean rating")
    return float(((scores[better] > scores[worse]) + 0.5 * (scores[better] == scores[worse])).mean())


def rater_accuracy(scores: np.ndarray, snippets: Sequence[RatedSnippet]) -> float:
    """Share of all comparisons, rater against rater, that ``scores [N]`` agree with; raters' ties are left out.

    Its ceiling lies far below 1, as raters disagree with one another.
    """
    shares = preference_shares(rating_counts(snippets))
    np.fill_diagonal(shares, 0.0)
    order = 0.5 + 0.5 * np.sign(scores[:, None] - scores[None, :])
    return float((shares * order).sum() / shares.sum())


def human_pair_accuracy(snippets: Sequence[RatedSnippet], gap: float = 1.0) -> float:
    """How often one rater of each snippet, alone, orders a pair as the other raters do; in [0, 1].

    Over all pairs ``(a, b)`` of `gap_pairs`, and all raters i of a and j of b: the prediction is the sign of
    ``rating_i(a) - rating_j(b)``; the truth is the sign of the difference of the mean ratings of a without i and of b
    without j. A prediction of a tie counts half, and so does a truth that is a tie. Pairs weigh the same, and so do
    the choices of i and j within a pair. It is exact: nothing is sampled.

    Raises:
        ValueError: if a snippet has fewer than two ratings, or no pair is that far apart.
    """
    counts = rating_counts(snippets)
    num = counts.sum(axis=1)
    if num.min() < 2:
        raise ValueError("a single rater's accuracy needs at least two ratings of every snippet")
    better, worse = gap_pairs(snippets, gap)
    if not len(better):
        raise ValueError(f"no pair of the {len(snippets)} snippets differs by {gap} in its mean rating")
    shares = (counts / num[:, None]).astype(np.float32)
    sums = counts @ RATINGS
    others = ((sums[:, None] - RATINGS) / (num[:, None] - 1)).astype(np.float32)
    right = np.zeros(len(better), dtype=np.float32)
    for i, rating_a in enumerate(RATINGS):
        for j, rating_b in enumerate(RATINGS):
            said = np.sign(rating_a - rating_b)
            truth = np.sign(others[better, i] - others[worse, j])
            right += shares[better, i] * shares[worse, j] * (0.5 + 0.5 * said * truth)
    return float(right.mean(dtype=np.float64))
