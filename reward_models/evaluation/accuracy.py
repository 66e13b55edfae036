"""Pair accuracy of reward models and of single human raters, its dependence on length, and calibration. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reward_models.data.comparisons import RATINGS, ComparisonBatch, rating_counts
from reward_models.data.movie_ratings import RatedSnippet

NUM_BINS = 10
GAP = 1.0
"""Between the mean ratings of two snippets that are compared, at least."""


def gap_pairs(snippets: Sequence[RatedSnippet]) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``(better [M], worse [M])`` of all pairs of snippets whose mean ratings differ by at least `GAP`.

    Raises:
        ValueError: no pair is that far apart.
    """
    means = np.array([snippet.mean for snippet in snippets])
    better, worse = np.nonzero(means[:, None] - means[None, :] >= GAP)
    if not len(better):
        raise ValueError(f"no pair of the {len(snippets)} snippets differs by {GAP} in its mean rating")
    return better, worse


def gap_accuracy(scores: np.ndarray, snippets: Sequence[RatedSnippet]) -> float:
    """Share of the pairs of `gap_pairs` that ``scores [N]`` put in the order of the mean ratings; ties count half.

    Raises:
        ValueError: no pair is that far apart, or the numbers of scores and snippets differ.
    """
    if len(scores) != len(snippets):
        raise ValueError(f"scores: expected {len(snippets)}, one for each snippet, received {len(scores)}")
    better, worse = gap_pairs(snippets)
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


def human_pair_accuracy(snippets: Sequence[RatedSnippet]) -> float:
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
    better, worse = gap_pairs(snippets)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Comparisons sorted into bins by the model's confidence; B bins of equal width over [0.5, 1]."""

    edges: np.ndarray  # [B + 1] borders of the bins
    share: np.ndarray  # [B] share of the comparisons' weight, in [0, 1]; sums to 1
    confidence: np.ndarray  # [B] mean probability of the likelier choice, in [0.5, 1]; NaN in an empty bin
    accuracy: np.ndarray  # [B] how often the likelier choice was made, in [0, 1]; NaN in an empty bin

    @property
    def error(self) -> float:
        """Expected calibration error, in [0, 1]: ``sum_b share_b |accuracy_b - confidence_b|``.

        Source: Guo et al. 2017, eq. 3 (arXiv:1706.04599).
        """
        gaps = np.where(self.share > 0, np.abs(self.accuracy - self.confidence), 0.0)
        return float((self.share * gaps).sum())


def choice_probabilities(rewards: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """``[M]``: Bradley and Terry's ``P(chosen > rejected) = sigmoid(r_c - r_r)``.

    It has no margin, which is unknown before the choice; a model trained with margins is therefore overconfident.

    ``rewards [N]`` are raw, in nats as the loss has them: a calibrated score times the model's ``std``. ``chosen`` and
    ``rejected`` are ``[M]`` indices of the preferred texts and of the others.
    """
    lead = rewards[chosen].astype(np.float64) - rewards[rejected]
    return np.asarray(np.exp(-np.logaddexp(0.0, -lead)))


def reliability(
    probabilities: np.ndarray, weights: np.ndarray | None = None, *, num_bins: int = NUM_BINS
) -> Reliability:
    """Confidence and accuracy by bin, of ``[M]`` predicted probabilities of the choice made, with weights >= 0.

    The order of two texts is arbitrary, so the binned value is the probability of the likelier choice, ``max(p, 1 -
    p)``, and the outcome is whether that choice was made (half, where p is 0.5). A divided judgment is two comparisons,
    one in each order, weighted by their shares.

    Raises:
        ValueError: no comparison has weight, or a probability is outside of [0, 1].
    """
    weights = np.ones(len(probabilities)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not weights.sum() > 0:
        raise ValueError("expected a comparison with weight, received none")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities: expected numbers in [0, 1], received others")
    confidence = np.maximum(probabilities, 1 - probabilities)
    right = (probabilities > 0.5) + 0.5 * (probabilities == 0.5)
    place = np.minimum((confidence - 0.5) * 2 * num_bins, num_bins - 1).astype(np.int64)
    total, sure, correct = (
        np.bincount(place, weights=weights * values, minlength=num_bins) for values in (1.0, confidence, right)
    )
    with np.errstate(invalid="ignore"):
        return Reliability(
            edges=np.linspace(0.5, 1.0, num_bins + 1),
            share=total / weights.sum(),
            confidence=sure / total,
            accuracy=correct / total,
        )
