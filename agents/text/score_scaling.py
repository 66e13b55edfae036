"""What a text is paid beside its raw score: the score's scaling, and a punishment of overlong texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.functional.running_moments import RunningMoments


class ScoreScaler:
    """``clip((score - mean) / std, -limit, limit)`` with mean and deviation of all scores so far; or the clip alone.

    Source: Zheng et al. 2023, section 5.3.1, "reward normalization and clipping" (arXiv:2307.04964).

    Args:
        standardize: subtract the running mean and divide by the running standard deviation.
        limit: bound of the absolute value, standard deviations (reward units without ``standardize``), > 0; None: none.

    Raises:
        ValueError: for a limit that is not positive, or a scaler that would do nothing.
    """

    def __init__(self, *, standardize: bool = False, limit: float | None = None) -> None:
        if limit is not None and not limit > 0:
            raise ValueError(f"limit: expected a positive number or None, received {limit}")
        if limit is None and not standardize:
            raise ValueError("expected standardize or limit, received neither: pass no scaler instead")
        self.standardize, self.limit = standardize, limit
        self.moments = RunningMoments()

    def __call__(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Update the moments with ``scores`` ``[N]`` and return them scaled."""
        self.moments.update(scores)
        scaled = scores.astype(np.float64)
        if self.standardize:
            scaled = (scaled - self.moments.mean) / np.sqrt(self.moments.variance + 1e-8)
        if self.limit is not None:
            scaled = scaled.clip(-self.limit, self.limit)
        return scaled.astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Exact state."""
        return self.moments.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from ``state_dict``."""
        self.moments.load_state_dict(state)


def overlong_punishment(lengths: NDArray[np.int64], *, limit: int, cache: int) -> NDArray[np.float64]:
    """``[N]`` from 0, up to ``limit - cache`` tokens, in a straight line to -1 at ``limit``, and -1 beyond.

        R(y) = 0 if |y| <= L_max - L_cache;  ((L_max - L_cache) - |y|) / L_cache up to L_max;  -1 beyond

    Source: "soft overlong punishment" of DAPO, Yu et al. 2025, eq. 13 (arXiv:2503.14476). ``lengths [N]``, ``limit``
    (L_max) and ``cache`` (L_cache, >= 1) are tokens.
    """
    return ((limit - cache - lengths) / cache).clip(-1.0, 0.0)
