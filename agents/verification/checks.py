"""The result of a check, and the table of results. The checks themselves are in the other modules of this room."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, SupportsFloat

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

WIDTHS = (60, 22, 40, 7)
"""Characters of the printed columns."""
HEADINGS = ("claim", "expected", "measured", "verdict")


class Check(NamedTuple):
    """One claim with its expected and measured value."""

    claim: str  # A sentence that is true if the check passes; "" for the claim that it runs under
    expected: str  # the value that the claim predicts
    measured: str  # the measured value, or the reason why there is none
    passed: bool | None  # none: the claim does not apply here

    @property
    def verdict(self) -> str:
        """ "pass", "FAIL" or "n/a"."""
        return {True: "pass", False: "FAIL", None: "n/a"}[self.passed]


Checking = tuple[str, Callable[[], "Check | Sequence[Check]"]]
"""The claim that fails if the function raises, and the function."""
Part = tuple[str, Callable[..., "Check | Sequence[Check]"]]
"""The same of a function that takes what is checked."""


def number(value: float) -> str:
    """Format a number with four significant digits."""
    return f"{float(value):.4g}"


def at_most(claim: str, measured: float, bound: float, note: str = "") -> Check:
    """``measured <= bound``; NaN fails."""
    return Check(claim, f"<= {number(bound)}", number(measured) + note, bool(measured <= bound))


def at_least(claim: str, measured: float, bound: float, note: str = "") -> Check:
    """``measured >= bound``; NaN fails."""
    return Check(claim, f">= {number(bound)}", number(measured) + note, bool(measured >= bound))


def near(claim: str, measured: ArrayLike, expected: ArrayLike, within: float) -> Check:
    """Numbers, or lists of them, that agree to ``within``; NaN fails."""
    found, wanted = (np.atleast_1d(np.asarray(x, np.float64)) for x in (measured, expected))
    close = found.shape == wanted.shape and bool((np.abs(found - wanted) <= within).all())
    return Check(claim, f"{_listed(wanted)} ± {number(within)}", _listed(found), close)


def not_applicable(claim: str, why: str) -> Check:
    """A claim that does not apply to the subject."""
    return Check(claim, "-", why, None)


def joint(claim: str, parts: Sequence[Check]) -> Check:
    """Combine checks into one line, which fails if any of them fails and shows all values."""
    verdicts = [part.passed for part in parts if part.passed is not None]
    passed = all(verdicts) if verdicts else None
    expected, measured = ("; ".join(dict.fromkeys(column)) for column in zip(*(p[1:3] for p in parts), strict=True))
    return Check(claim, expected, measured, passed)


def run(checkings: Iterable[Checking], show: Callable[[Check], None] = lambda check: None) -> list[Check]:
    """Run every check and ``show`` it; one that raises has failed, with the error as its measured value."""
    made: list[Check] = []
    for claim, function in checkings:
        try:
            found = function()
            results = [found] if isinstance(found, Check) else found
            results = [check._replace(claim=check.claim or claim) for check in results]
        except Exception as error:  # any error of a user's environment or model is a failed check
            message = " ".join(str(error).split()) or "no message"
            results = [Check(claim, "no error", f"{type(error).__name__}: {message[:300]}", False)]
        for check in results:
            show(check)
        made += results
    return made


def about(subject: object, parts: Iterable[Part]) -> list[Checking]:
    """The checks of ``parts`` on ``subject``."""
    return [(claim, partial(check, subject)) for claim, check in parts]


def larger(one: float, other: SupportsFloat) -> float:
    """The maximum; NaN if either is NaN."""
    return float(np.maximum(one, float(other)))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """``|found - expected| / |expected|``, Euclidean norms."""
    return float((found - expected).norm() / expected.norm())


def flat_grad(module: nn.Module) -> Tensor:
    """The gradients of all parameters that have one, in one vector."""
    return torch.cat([p.grad.flatten().clone() for p in module.parameters() if p.grad is not None])


def printed(cells: Sequence[str]) -> str:
    """One table row for a terminal, with wrapped cells."""
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, WIDTHS, strict=True)]
    lines = []
    for i in range(max(len(cell) for cell in wrapped)):
        parts = [cell[i] if i < len(cell) else "" for cell in wrapped]
        lines.append("  ".join(f"{part:<{width}}" for part, width in zip(parts, WIDTHS, strict=True)).rstrip())
    return "\n".join(lines)


def headings() -> str:
    """The first two lines of the table for a terminal."""
    return printed(HEADINGS) + "\n" + "  ".join("-" * width for width in WIDTHS)


def markdown(title: str, checks: Sequence[Check]) -> str:
    """The table as a Markdown page."""
    lines = [f"# {title}", "", "| " + " | ".join(HEADINGS) + " |", "|---|---|---|---|"]
    for check in checks:
        cells = [*check[:3], check.verdict]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", tally(checks), ""])


def tally(checks: Sequence[Check]) -> str:
    """Counts of passed, failed and not applicable checks."""
    passed, failed, rest = (sum(check.passed is verdict for check in checks) for verdict in (True, False, None))
    return f"{passed} passed, {failed} failed" + (f", {rest} not applicable" if rest else "")


def _listed(values: np.ndarray) -> str:
    return " ".join(number(value) for value in values.flatten())
