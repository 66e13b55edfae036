"""The metrics of a rollout of text, computed from its finished rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from textenvs.tokens.rows import TokenRows
from textenvs.wrappers.preference import mean_where_it_applies, score_spread

REPETITION_N = 3
"""Length of the n-grams of ``rollout/repetition``, as in Paulus et al. 2017 (arXiv:1705.04304)."""

METRICS: dict[str, str] = {
    "rollout/score": "if there is a scorer: mean score of the finished texts, without penalties, reward units",
    "rollout/score_std": "its standard deviation over the texts",
    "rollout/score_disagreement": "several scorers: mean over texts of the standard deviation over their members, "
    "regardless of their weights, reward units",
    "rollout/score_disagreement/NAME": "the same within the ensemble of that name, if there are other scorers, too",
    "rollout/score/NAME": "several scorers: mean score by the member of that name where it applies, before scores are "
    "combined; members of an ensemble are NAME/0, NAME/1, ...",
    "rollout/share_unscored": "share of texts to which no scorer applies (all returned None), [0, 1]: their score is 0",
    "rollout/return_mean": "mean over texts of the sum of rewards, penalties and score scaling included, reward units",
    "rollout/kl_per_sequence": "mean over texts of sum_t (log pi - log pi_ref), nats: the k1 estimate that is charged",
    "rollout/kl_per_token": "the same sum divided by the number of tokens, nats",
    "rollout/beta": "KL coefficient in this rollout, reward units per nat",
    "rollout/surprisal": "mean of -log pi of the sampled tokens, nats per token: an estimate of the entropy",
    "rollout/length_mean": "mean tokens per text, the end-of-text token included",
    "rollout/length_p10": "10th percentile of the tokens per text",
    "rollout/length_p50": "their median",
    "rollout/length_p90": "90th percentile of the tokens per text",
    "rollout/share_eos": "share of texts that ended with the end-of-text token (stop reason eos), [0, 1]",
    "rollout/share_length": "share of texts that reached the token budget (stop reason length), [0, 1]",
    "rollout/distinct_2": "distinct bigrams / bigrams in a text, averaged over texts, [0, 1]; low means repetition",
    "rollout/repetition": f"share of a text's {REPETITION_N}-grams that occurred in it before, averaged over texts, "
    "[0, 1]",
    "rollout/draws": "dynamic sampling: batches drawn for this rollout; its other metrics are means over all of them",
    "rollout/groups_dropped": "dynamic sampling: share of the groups drawn whose returns are all equal, [0, 1]",
    "rollout/groups_filled": "dynamic sampling: share of the rollout's groups that are such after all draws, [0, 1]",
    "time/generate_s": "seconds of this rollout spent generating",
    "time/score_s": "seconds of this rollout spent in the environment: scores and reference",
}
"""Every metric a rollout of text adds to those of ``agents.runs.logging``, with its formula and unit."""


def rollout_metrics(rows: TokenRows) -> dict[str, float]:
    """Metrics of finished rows, without prefix; padding is ignored. ``METRICS`` explains each."""
    mask = rows.mask
    count = mask.sum()
    metrics = {
        "length_mean": float(count / len(mask)),
        "share_eos": float((rows.stop_reason == "eos").mean()),
        "share_length": float((rows.stop_reason == "length").mean()),
        "distinct_2": 1.0 - repetition(rows.completions, mask, 2),
        "repetition": repetition(rows.completions, mask, REPETITION_N),
    }
    for percent in (10, 50, 90):
        metrics[f"length_p{percent}"] = float(np.percentile(mask.sum(1), percent, method="inverted_cdf"))
    if rows.scores is not None:
        metrics |= {"score": float(rows.scores.mean()), "score_std": float(rows.scores.std())}
    if rows.member_scores:
        metrics["share_unscored"] = float(np.isnan(list(rows.member_scores.values())).all(0).mean())
    metrics |= _by_member(rows)
    if rows.kl is not None:
        metrics |= {"kl_per_sequence": float(rows.kl.sum() / len(mask)), "kl_per_token": float(rows.kl.sum() / count)}
    if rows.logprobs is not None:
        metrics["surprisal"] = float(-rows.logprobs[mask].mean())
    return metrics


def _by_member(rows: TokenRows) -> dict[str, float]:
    """Mean score of each of several scorers, and their disagreement; nothing for a single one."""
    members = rows.member_scores or {}
    if len(members) < 2 or rows.score_std is None:
        return {}
    metrics = {"score_disagreement": float(rows.score_std.mean())}
    means = {f"score/{name}": mean_where_it_applies(scores) for name, scores in members.items()}
    metrics |= {name: mean for name, mean in means.items() if mean is not None}
    ensembles: dict[str, list[NDArray[np.float32]]] = {}
    for name, scores in members.items():
        ensembles.setdefault(name.rpartition("/")[0], []).append(scores)
    single = ensembles.pop("", [])
    if len(ensembles) + len(single) > 1:
        spreads = {name: score_spread(np.stack(each)) for name, each in ensembles.items()}
        metrics |= {f"score_disagreement/{name}": float(spread.mean()) for name, spread in spreads.items()}
    return metrics


def repetition(completions: NDArray[np.int64], mask: NDArray[np.bool_], n: int) -> float:
    """Share of a text's n-grams that occurred in it before, averaged over the texts that have an n-gram; 0 if none has.

        1 - distinct n-grams / n-grams

    Source: Welleck et al. 2020, "seq-rep-n" (arXiv:1908.04319), with n = 4.

    Args:
        completions: ``[N, T]`` token ids.
        mask: ``[N, T]`` True on valid tokens.
        n: tokens, >= 1.
    """
    shares = []
    for row, valid in zip(completions, mask, strict=True):
        tokens = row[valid].tolist()
        if len(tokens) >= n:
            grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
            shares.append(1.0 - len(set(grams)) / len(grams))
    return float(np.mean(shares)) if shares else 0.0
