"""Best-of-n and pass@k estimated by the mean over all subsets of samples, and a bound of best-of-n's KL. Pure numpy.

Best-of-n samples n texts for a prompt and keeps the one with the highest reward. From N >= n samples, the mean over all
subsets of size n is the unbiased estimate of its score, or of a judge's score, with the lowest variance.
"""

from __future__ import annotations

import math

import numpy as np


def best_of_n_kl(n: int) -> float:
    """Upper bound of the KL from the sampling policy to best-of-n, nats; tight if no scores tie.

        log n - (n - 1) / n

    Source: Stiennon et al. 2020, appendix G.3 (arXiv:2009.01325); a bound in general: Beirami et al. 2024, theorem 1
    (arXiv:2401.01879).

    Raises:
        ValueError: if ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"n: expected 1 or more, received {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_weights(num_samples: int, n: int) -> np.ndarray:
    """``[N]``: share of the subsets of size ``n`` in which the sample of each rank, worst first, is the best.

        w_i = C(i - 1, n - 1) / C(N, n),   i = 1, ..., N

    Source: Nakano et al. 2021, appendix I (arXiv:2112.09332); Gao et al. 2022, appendix (arXiv:2210.10760).

    Raises:
        ValueError: unless ``1 <= n <= N``, the number of samples.
    """
    if not 1 <= n <= num_samples:
        raise ValueError(f"n: expected 1 to {num_samples}, the number of samples, received {n}")
    subsets = math.comb(num_samples, n)
    return np.array([math.comb(rank, n - 1) / subsets for rank in range(num_samples)])


def best_of_n_means(scores: np.ndarray, values: np.ndarray, max_n: int) -> np.ndarray:
    """``[P, max_n]``: mean value of the sample with the highest score among n, over all subsets; n = 1, ..., max_n.

    Samples that tie for the highest score are equally likely.

    Args:
        scores: ``[P, N]`` that select the best: N samples for each of P prompts.
        values: ``[P, N]`` to average: the scores themselves, or a judge's scores of the same samples.
        max_n: largest n, at most N.

    Raises:
        ValueError: if the shapes differ, or a number is not finite.
    """
    if scores.shape != values.shape or scores.ndim != 2:
        raise ValueError(f"expected scores and values [P, N], received {scores.shape} and {values.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(values).all()):
        raise ValueError("expected finite scores and values")
    weights = np.stack([best_of_n_weights(scores.shape[1], n) for n in range(1, max_n + 1)])
    return np.stack([weights @ _by_rank(*row) for row in zip(scores, values, strict=True)])


def pass_at_k(right: np.ndarray, k: int) -> np.ndarray:
    """``[P]``: probability that one of k samples is right at least, estimated without bias from n of which c are.

        1 - C(n - c, k) / C(n, k)

    which is the best of k of what is 1 or 0: of n samples for each of P prompts, ``right [P, n]`` bool.
    Source: Chen et al. 2021, eq. 1 (arXiv:2107.03374).

    Raises:
        ValueError: unless ``1 <= k <= n``.
    """
    return np.sort(right, axis=1) @ best_of_n_weights(right.shape[1], k)


def _by_rank(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``values [N]`` sorted by ``scores [N]``, worst first, averaged over equal scores."""
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(group, weights=values.astype(np.float64)) / size, size)
