"""Calibration of a reward model: predicted probabilities of choices, compared with choices. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_BINS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Comparisons sorted into bins by the model's confidence; B bins of equal width over [0.5, 1]."""

    edges: np.ndarray
    """``[B + 1]`` borders of the bins."""
    share: np.ndarray
    """``[B]`` share of the comparisons' weight, in [0, 1]; sums to 1."""
    confidence: np.ndarray
    """``[B]`` mean probability of the likelier choice, in [0.5, 1]; NaN in an empty bin."""
    accuracy: np.ndarray
    """``[B]`` how often the likelier choice was made, in [0, 1]; NaN in an empty bin."""

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
