"""Assets of the package: a small language model, a reward model, and openings of movie reviews.

They are in ``assets/`` beside this file; the environment variable ``TEXTENVS_ASSETS`` names another directory that
contains ``language_model/`` and ``reward_model/``. Nothing is downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from textenvs.tokens import tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPENINGS = Path(__file__).parent / "assets" / "openings.txt"
"""Text file of review openings, one a line, written for this project."""


def language_model_dir() -> Path:
    """Directory of the shipped causal LM (GPT-2 of about 2 million parameters) with its tokenizer."""
    return _asset("language_model")


def reward_model_dir() -> Path:
    """Directory of the shipped reward model, trained on human ratings of movie-review sentences."""
    return _asset("reward_model")


def load_language_model() -> PreTrainedModel:
    """The shipped causal LM, in float32 and evaluation mode."""
    from textenvs.lm.loading import load_causal_lm

    model: PreTrainedModel = load_causal_lm(language_model_dir())
    return model


def load_tokenizer() -> PreTrainedTokenizerBase:
    """The shipped language model's tokenizer."""
    return tokenizers.load_tokenizer(language_model_dir())


def _asset(name: str) -> Path:
    folder = Path(os.environ.get("TEXTENVS_ASSETS") or Path(__file__).parent / "assets") / name
    if not folder.is_dir():
        raise FileNotFoundError(f"expected the shipped {name} at {str(folder)!r}, found none; reinstall the package")
    return folder
