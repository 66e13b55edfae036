"""A measurement and the bounds that it is to keep."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measurement."""

    what: str
    value: float
    unit: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def bound(self) -> str:
        """As text; "" without any."""
        bounds = (("≥", self.least), ("≤", self.most))
        return " ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)

    @property
    def verdict(self) -> str:
        """Whether the bounds hold; "" without any."""
        if not self.bound:
            return ""
        low, high = (-math.inf if self.least is None else self.least), (math.inf if self.most is None else self.most)
        return "kept" if low <= self.value <= high else "MISSED"
