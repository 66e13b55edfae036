"""Held-out metrics of a reward model or an ensemble: accuracy, calibration and length bias.

An ensemble's scores and probabilities of a choice are the members' means (Lakshminarayanan et al. 2017,
arXiv:1612.01474); the report also has each member's metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from reward_models.aside import save_figure
from reward_models.data.comparisons import ComparisonBatch, group_comparisons, pair_comparisons
from reward_models.data.movie_ratings import RatedSnippet
from reward_models.data.pairs import PreferencePair
from reward_models.evaluation import accuracy
from reward_models.model import RewardModel

CUT = 24  # tokens; the default budget of a completion
BINS = "reliability.json"
PICTURE = "reliability.png"
GIBBERISH_SEED = 0
Report: TypeAlias = "tuple[dict[str, Any], accuracy.Reliability]"


def rating_report(members: Sequence[RewardModel], heldout: Sequence[RatedSnippet]) -> Report:
    """Metrics on rated snippets: those of `report`, and some that need ratings.

    ``pair_accuracy`` is over comparisons between raters, ``pair_accuracy_gap1`` over snippet pairs whose mean ratings
    differ by at least 1, ``pair_accuracy_gap1_cut`` over the same pairs with each text cut after 24 tokens.
    """
    metrics, bins, scores = report(members, group_comparisons(heldout))
    rows = members[0].encode([snippet.text for snippet in heldout])
    cut = _scores(members, [row[: CUT + 1] for row in rows]).mean(axis=0)
    lengths = np.array([len(row) for row in rows])
    means = np.array([snippet.mean for snippet in heldout])
    return {
        **metrics,
        "pair_accuracy_gap1": accuracy.gap_accuracy(scores.mean(axis=0), heldout),
        "pair_accuracy_gap1_cut": accuracy.gap_accuracy(cut, heldout),
        "human_pair_accuracy": accuracy.human_pair_accuracy(heldout),
        "num_heldout_pairs": len(heldout) * (len(heldout) - 1) // 2,
        "correlation_with_mean_rating": correlation(scores.mean(axis=0), means),
        "human_correlation_with_length": correlation(means, lengths),
    }, bins


def pair_report(members: Sequence[RewardModel], heldout: Sequence[PreferencePair]) -> Report:
    """Metrics on pairs; those that need ratings are None."""
    metrics, bins, _ = report(members, pair_comparisons(heldout))
    return metrics | {"pair_accuracy_gap1": None, "human_pair_accuracy": None, "num_heldout_pairs": len(heldout)}, bins


def report(
    members: Sequence[RewardModel], comparisons: ComparisonBatch
) -> tuple[dict[str, Any], accuracy.Reliability, np.ndarray]:
    """Metrics on any comparisons.

    Returns:
        Metrics: ``pair_accuracy``, ``calibration_error`` (expected, [0, 1]), ``score_mean`` and ``score_std`` over the
        texts, ``correlation_with_length`` (tokens), those of `accuracy_by_length`; of an ensemble also ``disagreement``
        (mean over texts of the standard deviation over members, score units), and ``disagreement_gibberish`` on random
        rows of the same lengths, which is larger if an ensemble is useful. Then the bins of the calibration error, and
        the members' scores ``[K, N]``.
    """
    rows = members[0].encode(comparisons.texts)
    lengths = np.array([len(row) for row in rows])
    each = _scores(members, rows)
    scores = each.mean(axis=0)
    probabilities = [
        accuracy.choice_probabilities(own * float(member.std), comparisons.chosen, comparisons.rejected)
        for member, own in zip(members, each, strict=True)
    ]
    bins = accuracy.reliability(np.mean(probabilities, axis=0), comparisons.weights)
    metrics: dict[str, Any] = {
        "pair_accuracy": accuracy.comparison_accuracy(scores, comparisons),
        "calibration_error": bins.error,
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "correlation_with_length": correlation(scores, lengths),
        **accuracy.accuracy_by_length(scores, lengths, comparisons),
    }
    if len(members) > 1:
        random = _scores(members, gibberish(members[0], rows))
        spreads = {"disagreement": each, "disagreement_gibberish": random}
        metrics["members"] = len(members)
        metrics |= {name: float(scored.std(axis=0).mean()) for name, scored in spreads.items()}
        for index, (own, p) in enumerate(zip(each, probabilities, strict=True)):
            metrics[f"member_{index}_pair_accuracy"] = accuracy.comparison_accuracy(own, comparisons)
            metrics[f"member_{index}_calibration_error"] = accuracy.reliability(p, comparisons.weights).error
    return metrics, bins, each


def gibberish(model: RewardModel, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows of the same lengths and special tokens; all other tokens are drawn uniformly from the others."""
    special = set(model.tokenizer.all_special_ids)
    words = np.array([token for token in range(len(model.tokenizer)) if token not in special])
    rng = np.random.default_rng(GIBBERISH_SEED)
    return [[token if token in special else int(rng.choice(words)) for token in row] for row in rows]


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's correlation in [-1, 1]; None if either is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else None


def bins_table(bins: accuracy.Reliability) -> dict[str, Any]:
    """The bins as rows for a JSON file; an empty bin has None for confidence and accuracy."""
    names = ("from", "to", "share", "confidence", "accuracy")
    columns = (bins.edges[:-1], bins.edges[1:], bins.share, bins.confidence, bins.accuracy)
    table = np.stack(columns, axis=1).tolist()
    rows = [
        {name: None if math.isnan(value) else value for name, value in zip(names, row, strict=True)} for row in table
    ]
    return {"calibration_error": bins.error, "bins": rows}


def draw_bins(bins: accuracy.Reliability, out: Path) -> Path:
    """Plot a reliability diagram: accuracy over confidence, and the share of each bin."""
    from matplotlib.figure import Figure

    filled = bins.share > 0
    width = bins.edges[1] - bins.edges[0]
    figure = Figure(figsize=(4.6, 5.2))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0.5, 1], [0.5, 1], linestyle="--", color="gray", linewidth=1, label="perfect calibration")
    above.plot(bins.confidence[filled], bins.accuracy[filled], marker="o", linewidth=1.6, label="this model")
    above.set_ylabel("the likelier choice was made (share)")
    above.set_title(f"expected calibration error {bins.error:.3f}", fontsize=9)
    above.legend(fontsize=8)
    below.bar(bins.edges[:-1] + width / 2, bins.share, width=0.9 * width)
    below.set_ylabel("share of pairs")
    below.set_xlabel("predicted probability of the likelier choice, [0.5, 1]")
    for axis in (above, below):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    return save_figure(figure, out)


def _scores(members: Sequence[RewardModel], rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.stack([member.score_rows(rows) for member in members])
