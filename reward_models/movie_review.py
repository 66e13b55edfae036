"""``textenvs/MovieReview-v0``: sentences of movie reviews, scored by the shipped reward model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from reward_models.model import RewardModel
from textenvs import assets
from textenvs.envs.base import TokenVectorBase
from textenvs.envs.scalar import TokenEnv
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.factories import scalar, text_generation_vec
from textenvs.tokens.prompts import PromptSource
from textenvs.tokens.tokenizers import Tokenizer
from textenvs.wrappers.interfaces import ReferenceSource, Scorer


def load_scorer() -> RewardModel:
    """Load the shipped reward model, a scorer for `PreferenceReward`."""
    return RewardModel.load(assets.reward_model_dir())


def movie_review_vec(
    num_envs: int = 1,
    *,
    rows: PromptSource | None = None,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    scorer: Scorer | Sequence[Scorer] | None = None,
    reference: ReferenceSource | None = None,
    **options: Any,
) -> TokenVectorBase | TokenVectorWrapper:
    """``gym.make_vec("textenvs/MovieReview-v0", ...)``: sentences of movie reviews, praised or panned.

    None selects the shipped openings, tokenizer, reward model and language model. `options` are those of
    `textenvs.factories.text_generation_vec`. Works offline.

    Raises:
        ValueError: invalid or conflicting parts.
    """
    if reference is None:
        reference = assets.language_model_dir()
    if tokenizer is None and not isinstance(reference, str | os.PathLike):
        tokenizer = getattr(reference, "tokenizer", None) or assets.load_tokenizer()
    return text_generation_vec(
        num_envs,
        rows=assets.OPENINGS if rows is None else rows,
        tokenizer=tokenizer,
        scorer=load_scorer() if scorer is None else scorer,
        reference=reference,
        **options,
    )


def movie_review(**options: Any) -> TokenEnv:
    """``gym.make("textenvs/MovieReview-v0", ...)``: `movie_review_vec` as one scalar environment."""
    return scalar(movie_review_vec, **options)
