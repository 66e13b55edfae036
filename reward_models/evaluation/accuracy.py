"""Pair accuracy of reward models and of single human raters, and its dependence on length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reward_models.data.comparisons import RATINGS, ComparisonBatch, rating_counts
from reward_models.data.movie_ratings import RatedSnippet


def gap_pairs(snippets: Sequence[RatedSnippet], gap: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``(better [M], worse [M])`` of all pairs of snippets whose mean ratings differ by at least ``gap``.

    Raises:
        ValueError: no pair is that far apart.
    """
    means = np.array([snippet.mean for snippet in snippets])
    better, worse = np.nonzero(means[:, None] - means[None, :] >= gap)
    if not len(better):
        raise ValueError(f"no pair of the {len(snippets)} snippets differs by {gap} in its mean rating")
    return better, worse


def gap_accuracy(scores: np.ndarray, snippets: Sequence[RatedSnippet], gap: float = 1.0) -> float:
    """Share of the pairs of `gap_pairs` that ``scores [N]`` put in the order of the mean ratings; ties count half.

    Raises:
        ValueError: no pair is that far apart, or the numbers of scores and snippets differ.
    """
    if len(scores) != len(snippets):
        raise ValueError(f"scores: expected {len(snippets)}, one for each snippet, received {len(scores)}")
    better, worse = gap_pairs(snippets, gap)
    return float(((scores[better] > scores[worse]) + 0.5 * (scores[better] == scores[worse])).mean())


def comparison_accuracy(scores: np.ndarray, comparisons: ComparisonBatch) -> float:
    """Weighted share of the comparisons that ``scores [K]`` of their texts order correctly; ties count half.

    Its maximum is far below 1 for comparisons between raters, who disagree.

    Raises:
        ValueError: no comparison has weight.
    """
    found = _accuracy_where(scores, comparisons, np.ones(len(comparisons.chosen), dtype=bool))
    if found is None:
        raise ValueError("expected a comparison with weight, received none")
    return found


def accuracy_by_length(
    scores: np.ndarray, lengths: np.ndarray, comparisons: ComparisonBatch
) -> dict[str, float | None]:
    """`comparison_accuracy` where the longer text was chosen and where it was rejected; a difference shows length bias.

    ``scores [K]`` and ``lengths [K]``, tokens, are of the compared texts; pairs of equal length are ignored.
    Source: Singhal et al. 2023, "A Long Way to Go" (arXiv:2310.03716).

    Returns:
        ``longer_chosen_share`` (of the weight, in [0, 1]: the raters' own preference for length),
        ``pair_accuracy_longer_chosen`` and ``pair_accuracy_longer_rejected``; None without such a pair.
    """
    difference = lengths[comparisons.chosen] - lengths[comparisons.rejected]
    weight_chosen, weight_rejected = (
        float(comparisons.weights[which].sum(dtype=np.float64)) for which in (difference > 0, difference < 0)
    )
    total = weight_chosen + weight_rejected
    return {
        "longer_chosen_share": weight_chosen / total if total else None,
        "pair_accuracy_longer_chosen": _accuracy_where(scores, comparisons, difference > 0),
        "pair_accuracy_longer_rejected": _accuracy_where(scores, comparisons, difference < 0),
    }


def _accuracy_where(scores: np.ndarray, comparisons: ComparisonBatch, which: np.ndarray) -> float | None:
    weights = comparisons.weights[which].astype(np.float64)
    if not weights.sum() > 0:
        return None
    lead = scores[comparisons.chosen[which]] - scores[comparisons.rejected[which]]
    return float((weights * ((lead > 0) + 0.5 * (lead == 0))).sum() / weights.sum())


def human_pair_accuracy(snippets: Sequence[RatedSnippet], gap: float = 1.0) -> float:
    """How often single raters order a pair as the other raters do; in [0, 1].

    Over all pairs ``(a, b)`` of `gap_pairs`, and all raters i of a and j of b: the prediction is the sign of
    ``rating_i(a) - rating_j(b)``; the truth is the sign of the difference of the mean ratings of a without i and of b
    without j. Ties of either count half. Pairs have equal weights, and so have i and j within a pair; nothing is
    sampled.

    Raises:
        ValueError: a snippet has fewer than two ratings, or no pair is that far apart.
    """
    counts = rating_counts(snippets)
    num = counts.sum(axis=1)
    if num.min() < 2:
        raise ValueError("snippets: expected at least two ratings of each, received fewer")
    better, worse = gap_pairs(snippets, gap)
    shares = (counts / num[:, None]).astype(np.float32)
    sums = counts @ RATINGS
    others = ((sums[:, None] - RATINGS) / (num[:, None] - 1)).astype(np.float32)
    right = np.zeros(len(better), dtype=np.float32)
    for i, rating_a in enumerate(RATINGS):
        for j, rating_b in enumerate(RATINGS):
            prediction = np.sign(rating_a - rating_b)
            truth = np.sign(others[better, i] - others[worse, j])
            right += shares[better, i] * shares[worse, j] * (0.5 + 0.5 * prediction * truth)
    return float(right.mean(dtype=np.float64))
