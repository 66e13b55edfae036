"""Minibatches of comparisons from ratings and pairs, with each text once.

Each rater of one snippet is compared with each rater of another, which keeps the raters' disagreement. K encodings
serve K (K - 1) / 2 snippet pairs, as in InstructGPT (Ouyang et al. 2022, sec. 3.5, arXiv:2203.02155).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from reward_models.data.movie_ratings import RatedSnippet, normalize_text
from reward_models.data.pairs import PreferencePair

SPLIT_SEED = 2014
RATINGS = np.arange(-4, 5)


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparisonBatch:
    """M comparisons among K texts, each of which is encoded once."""

    texts: Sequence[str]
    chosen: np.ndarray  # [M] indices into texts of the preferred ones
    rejected: np.ndarray  # [M] indices of the others
    weights: np.ndarray  # [M] float32, share of the judgments with this preference, >= 0
    margins: np.ndarray  # [M] float32, required lead of the chosen text, reward units

    @property
    def num_pairs(self) -> int:
        """Number of unordered pairs of texts."""
        return len({(min(a, b), max(a, b)) for a, b in zip(self.chosen.tolist(), self.rejected.tolist(), strict=True)})


class BatchSource(Protocol):
    """A source of training batches."""

    def __len__(self) -> int:
        """Batches an epoch."""

    def epoch(self, rng: np.random.Generator) -> Iterator[ComparisonBatch]:
        """The batches of one epoch; their order and grouping come from ``rng``."""


def split_snippets(
    snippets: Sequence[RatedSnippet], *, heldout_share: float = 0.2, seed: int = SPLIT_SEED
) -> tuple[list[RatedSnippet], list[RatedSnippet]]:
    """Training and held-out snippets, in their order; snippets of one normalized text stay together.

    ``heldout_share``, in (0, 1), is of the distinct texts.

    Raises:
        ValueError: one side would be empty.
    """
    keys = sorted({normalize_text(snippet.text) for snippet in snippets})
    num_heldout = round(heldout_share * len(keys))
    if not 0 < num_heldout < len(keys):
        raise ValueError(f"heldout_share: expected two non-empty sides, received {heldout_share} of {len(keys)} texts")
    chosen = np.random.default_rng(seed).permutation(len(keys))[:num_heldout]
    heldout = {keys[i] for i in chosen}
    sides: tuple[list[RatedSnippet], list[RatedSnippet]] = ([], [])
    for snippet in snippets:
        sides[normalize_text(snippet.text) in heldout].append(snippet)
    return sides


def rating_counts(snippets: Sequence[RatedSnippet]) -> np.ndarray:
    """``[N, 9]`` float64: how many raters gave each snippet -4, -3, ..., 4."""
    counts = np.zeros((len(snippets), len(RATINGS)))
    for row, snippet in zip(counts, snippets, strict=True):
        np.add.at(row, np.array(snippet.ratings) - RATINGS[0], 1)
    return counts


def group_comparisons(snippets: Sequence[RatedSnippet]) -> ComparisonBatch:
    """All comparisons between raters of a group, whose weighted loss is the expected one of randomly drawn raters."""
    counts = rating_counts(snippets)
    probabilities = counts / counts.sum(axis=1, keepdims=True)
    below = np.cumsum(probabilities, axis=1) - probabilities
    shares = probabilities @ below.T  # of the pairs (rater of i, rater of j) in which the first gave more
    chosen, rejected = np.nonzero(shares * ~np.eye(len(snippets), dtype=bool))
    return ComparisonBatch(
        texts=[snippet.text for snippet in snippets],
        chosen=chosen,
        rejected=rejected,
        weights=shares[chosen, rejected].astype(np.float32),
        margins=np.zeros(len(chosen), dtype=np.float32),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class RatedGroups:
    """Batches of ``group_size`` rated snippets, regrouped each epoch, without the remainder."""

    snippets: Sequence[RatedSnippet]
    group_size: int

    def __post_init__(self) -> None:
        if not 2 <= self.group_size <= len(self.snippets):
            raise ValueError(f"group_size: expected a number in [2, {len(self.snippets)}], received {self.group_size}")

    def __len__(self) -> int:
        return len(self.snippets) // self.group_size

    def epoch(self, rng: np.random.Generator) -> Iterator[ComparisonBatch]:
        """The groups of one epoch."""
        order = rng.permutation(len(self.snippets))
        for start in range(0, len(self) * self.group_size, self.group_size):
            yield group_comparisons([self.snippets[i] for i in order[start : start + self.group_size]])


def pair_comparisons(pairs: Sequence[PreferencePair]) -> ComparisonBatch:
    """One comparison a pair; shared texts occur once."""
    places: dict[str, int] = {}
    chosen = [places.setdefault(pair.prompt + pair.chosen, len(places)) for pair in pairs]
    rejected = [places.setdefault(pair.prompt + pair.rejected, len(places)) for pair in pairs]
    return ComparisonBatch(
        texts=list(places),
        chosen=np.array(chosen),
        rejected=np.array(rejected),
        weights=np.ones(len(pairs), dtype=np.float32),
        margins=np.array([pair.margin for pair in pairs], dtype=np.float32),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class PairBatches:
    """Batches of ``batch_size`` pairs in random order; pairs of one prompt, and so shared texts, stay together."""

    pairs: Sequence[PreferencePair]
    batch_size: int

    def __post_init__(self) -> None:
        if not self.pairs or self.batch_size < 1:
            raise ValueError(f"expected pairs and a batch_size >= 1, received {len(self.pairs)}, {self.batch_size}")

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.batch_size)

    def epoch(self, rng: np.random.Generator) -> Iterator[ComparisonBatch]:
        """The batches of one epoch; the last one may be smaller."""
        by_prompt: dict[str, list[PreferencePair]] = {}
        for i in rng.permutation(len(self.pairs)):
            by_prompt.setdefault(self.pairs[i].prompt, []).append(self.pairs[i])
        ordered = [pair for group in by_prompt.values() for pair in group]
        for start in range(0, len(ordered), self.batch_size):
            yield pair_comparisons(ordered[start : start + self.batch_size])


def pair_keys(pair: PreferencePair) -> list[str]:
    """What must not be both trained on and held out: the two normalized texts, and the prompt if there is one."""
    keys = [normalize_text(pair.prompt + answer) for answer in (pair.chosen, pair.rejected)]
    return keys + (["prompt: " + normalize_text(pair.prompt)] if pair.prompt.strip() else [])


def split_pairs(
    pairs: Sequence[PreferencePair], *, heldout_share: float = 0.1, seed: int = SPLIT_SEED
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and held-out pairs; pairs that share a normalized text or a prompt stay together.

    Raises:
        ValueError: all pairs are connected, so that none can be held out.
    """
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for pair in pairs:
        keys = pair_keys(pair)
        for key in keys[1:]:
            leader[find(key)] = find(keys[0])
    members: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        members.setdefault(find(normalize_text(pair.prompt + pair.chosen)), []).append(i)
    groups = list(members.values())
    target = heldout_share * len(pairs)
    heldout: set[int] = set()
    for g in np.random.default_rng(seed).permutation(len(groups)):
        if len(heldout) < target and len(heldout) + len(groups[g]) <= max(2 * target, len(pairs) / 2):
            heldout.update(groups[g])
    if not heldout:
        raise ValueError(f"all {len(pairs)} pairs share texts or prompts, none can be held out: pass a held-out file")
    return (
        [pair for i, pair in enumerate(pairs) if i not in heldout],
        [pair for i, pair in enumerate(pairs) if i in heldout],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """Several sources in random alternation; an epoch has each batch of each source once."""

    sources: Sequence[BatchSource]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def epoch(self, rng: np.random.Generator) -> Iterator[ComparisonBatch]:
        """The batches of all sources."""
        turns = np.repeat(np.arange(len(self.sources)), [len(source) for source in self.sources])
        running = [source.epoch(rng) for source in self.sources]
        for turn in rng.permutation(turns):
            yield next(running[turn])
