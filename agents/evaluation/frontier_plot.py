"""The plot of `scripts.frontier`: gains over the square root of KL, a panel for each scorer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation.gao_fit import Trail
from reward_models.aside import save_figure

PANELS = (
    ("score", "gain in the reward trained on (reward units)"),
    ("judge", "gain by the independent judge (log-odds)"),
)
GREY = "0.35"


def draw(path: Path, runs: Sequence[Trail], rival: Trail, budget: float) -> None:
    """Plot runs, a color each, and best-of-n, gray, as a PNG; the ``budget``, nats, is a dotted line.

    Dots are measurements, dashes the fit, a diamond its peak.
    """
    from matplotlib.figure import Figure

    panels = [(name, label) for name, label in PANELS if name in rival.gains]
    figure = Figure(figsize=(5.6 * len(panels), 4.4))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (measure, label) in zip(axes, panels, strict=True):
        for i, run in enumerate(runs):
            _trail(axis, run, measure, color=f"C{i}")
        _trail(axis, rival, measure, color=GREY)
        axis.axvline(math.sqrt(budget), color=GREY, linewidth=0.8, linestyle=":")
        axis.set_xlabel("√KL to the start (√nats per sequence)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        above = axis.secondary_xaxis("top", functions=(np.square, lambda kl: np.sqrt(np.maximum(kl, 0.0))))
        largest = axis.get_xlim()[1] ** 2
        above.set_xticks([kl for kl in (0, 1, 2, 4, 8, 16, 32, 64, 128) if kl <= largest])
        above.tick_params(labelsize=8)
        above.set_xlabel("KL (nats)", fontsize=8)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)


def _trail(axis: Any, trail: Trail, measure: str, *, color: str) -> None:
    kl, fit = trail.points["kl_per_sequence"], trail.fits[measure]
    axis.plot(np.sqrt(np.maximum(kl, 0.0)), trail.gains[measure], ".", color=color, markersize=4, label=trail.name)
    along = np.linspace(0.0, float(kl.max()), 200)
    axis.plot(np.sqrt(along), fit(along), "--", color=color, linewidth=1.0)
    if fit.peak_kl is not None and fit.peak_kl <= kl.max():
        axis.plot(math.sqrt(fit.peak_kl), fit(np.array(fit.peak_kl)), "D", color=color, markersize=7, fillstyle="none")
