"""Combining the scores of several scorers into one reward, and their spread. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from textenvs.tokens.rows import Floats

COMBINATIONS = ("mean", "worst", "uncertainty")


def combine_scores(
    scores: Floats, combine: str = "mean", *, weights: Sequence[float] | None = None, uncertainty_coef: float = 0.1
) -> Floats:
    """One score ``[N]`` from the scores ``[K, N]`` of K members.

        mean         (1/K) sum_k s_k; with weights sum_k w_k s_k, not divided by the weights' sum
        worst        min_k s_k
        uncertainty  mean - uncertainty_coef * (1/K) sum_k (s_k - mean)^2

    Source: Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization" (arXiv:2310.02743): R_mu, R_WCO,
    R_UWO. The default coefficient, per reward unit and 0 or more, is from the authors' published PPO configuration.

    Raises:
        ValueError: as `check_combination`, or the scores are not ``[K, N]`` with K >= 1.
    """
    if scores.ndim != 2 or not len(scores):
        raise ValueError(f"scores: expected [K, N] with K of at least 1, received shape {scores.shape}")
    check_combination(combine, weights, uncertainty_coef, num_scorers=len(scores))
    exact: NDArray[np.float64] = scores.astype(np.float64)
    combined: NDArray[np.float64] = exact.mean(axis=0)
    if combine == "worst":
        combined = exact.min(axis=0)
    elif combine == "uncertainty":
        combined = combined - uncertainty_coef * exact.var(axis=0)
    elif weights is not None:
        combined = np.asarray(weights, dtype=np.float64) @ exact
    return combined.astype(np.float32)


def score_spread(scores: Floats) -> Floats:
    """``[N]``, reward units: standard deviation over the K members of ``scores [K, N]``, by K as in "uncertainty"."""
    spread: Floats = scores.astype(np.float64).std(axis=0).astype(np.float32)
    return spread


def check_combination(
    combine: str, weights: Sequence[float] | None, uncertainty_coef: float, *, num_scorers: int
) -> None:
    """Check the settings of `combine_scores`.

    Raises:
        ValueError: an unknown ``combine``; weights without "mean", of another number than the scorers', not finite, or
            all 0; a coefficient that is negative or not finite.
    """
    if combine not in COMBINATIONS:
        raise ValueError(f"combine: expected one of {', '.join(COMBINATIONS)}, received {combine!r}")
    if not (math.isfinite(uncertainty_coef) and uncertainty_coef >= 0):
        raise ValueError(f"uncertainty_coef: expected a finite number of 0 or more, received {uncertainty_coef!r}")
    if weights is None:
        return
    if combine != "mean":
        raise ValueError(f'weights: expected combine="mean", received combine={combine!r}; leave one of them out')
    if len(weights) != num_scorers:
        raise ValueError(f"weights: expected one for each of the {num_scorers} scorers, received {len(weights)}")
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise ValueError(f"weights: expected finite numbers that are not all 0, received {list(weights)}")
