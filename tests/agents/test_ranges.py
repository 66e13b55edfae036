"""Settings against their annotations and ranges."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from agents.functional.schedules import Linear
from agents.ranges import check_values


@dataclass(frozen=True, kw_only=True)
class Settings:
    count: int = 1
    share: float = 0.5
    rate: float | Linear = 0.1
    limit: float | None = None
    kind: Literal["a", "b"] | None = None
    folder: str = ""
    sizes: tuple[int, ...] = (1,)
    on: bool = False


RANGES = {">= 1": "count", "in [0, 1)": "share", "> 0": "rate limit"}


@pytest.mark.parametrize(
    "good",
    [
        {}, {"count": np.int64(3)}, {"share": np.float32(0.5)}, {"share": 0}, {"rate": Linear(1.0)}, {"limit": 2},
        {"kind": "b"}, {"folder": Path("x")}, {"sizes": [1, 2]}, {"on": True},
    ],
)  # fmt: skip
def test_values_of_the_annotated_type_in_their_range_pass(good):
    check_values(Settings(**good), RANGES)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"count": 1.0}, "count: expected a whole number, received 1.0"),
        ({"count": True}, "count: expected a whole number, received True"),
        ({"count": 0}, "count: expected a number >= 1, received 0"),
        ({"share": float("nan")}, "share: expected a finite number, received nan"),
        ({"share": "0.5"}, "share: expected a finite number, received '0.5'"),
        ({"share": 1.0}, r"share: expected a number in \[0, 1\), received 1.0"),
        ({"share": -0.1}, r"share: expected a number in \[0, 1\), received -0.1"),
        ({"rate": Linear(0.0)}, "rate: expected a number > 0, received 0"),
        ({"rate": {}}, "rate: expected a finite number or Linear, received {}"),
        ({"limit": float("inf")}, "limit: expected a finite number or None, received inf"),
        ({"limit": 0.0}, "limit: expected a number > 0, received 0.0"),
        ({"kind": "c"}, "kind: expected one of a, b or None, received 'c'"),
        ({"kind": ["a"]}, "kind: expected one of a, b or None"),
        ({"folder": 3}, "folder: expected text, received 3"),
        ({"sizes": 3}, "sizes: expected several, each a whole number, received 3"),
        ({"sizes": ("x",)}, "sizes: expected several, each a whole number"),
        ({"on": 1}, "on: expected True or False, received 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_value(bad, said):
    with pytest.raises(ValueError, match=said):
        check_values(Settings(**bad), RANGES)


@pytest.mark.parametrize("ends", [(float("nan"), 0.0), (1.0, float("inf")), (-1.0, 0.0)])
def test_a_schedule_has_finite_ends(ends):
    with pytest.raises(ValueError, match="finite and >= 0"):
        Linear(*ends)
