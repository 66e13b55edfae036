"""``textenvs/MovieReview-v0``: sentences of movie reviews, scored by the shipped reward model."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from reward_models.model import RewardModel
from textenvs import assets
from textenvs.envs.base import TokenVectorBase
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.factories import scalar, text_generation_vec
from textenvs.tokens.tokenizers import Tokenizer
from textenvs.wrappers.interfaces import ReferenceSource


def load_scorer() -> RewardModel:
    """Load the shipped reward model, a scorer for `PreferenceReward`."""
    return RewardModel.load(assets.reward_model_dir())


def movie_review_vec(
    num_envs: int = 1,
    *,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    reference: ReferenceSource | None = None,
    **options: Any,
) -> TokenVectorBase | TokenVectorWrapper:
    """``gym.make_vec("textenvs/MovieReview-v0", ...)``: sentences of movie reviews, praised or panned.

    Without ``rows``, ``tokenizer``, ``scorer`` or ``reference`` they are the shipped openings, tokenizer, reward model
    and language model. `options` are those of `textenvs.factories.text_generation_vec`. Works offline.

    Raises:
        ValueError: invalid or conflicting parts.
    """
    if reference is None:
        reference = assets.language_model_dir()
    if tokenizer is None and not isinstance(reference, str | os.PathLike):
        tokenizer = getattr(reference, "tokenizer", None) or assets.load_tokenizer()
    if options.get("rows") is None:
        options["rows"] = assets.OPENINGS
    if options.get("scorer") is None:
        options["scorer"] = load_scorer()
    return text_generation_vec(num_envs, tokenizer=tokenizer, reference=reference, **options)


movie_review = partial(scalar, movie_review_vec)
"""``gym.make("textenvs/MovieReview-v0", ...)``."""
