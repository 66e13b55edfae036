"""The parts that ship with the package: a small language model, a reward model, and openings of movie reviews.

They lie beside this file in ``assets/``; the environment variable ``TEXTENVS_ASSETS`` names another directory with
``language_model/`` and ``reward_model/`` in it. Nothing is downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

OPENINGS = Path(__file__).parent / "assets" / "openings.txt"
"""Text file of review openings, one a line, written for this project."""


def language_model_dir() -> Path:
    """Directory of the shipped causal LM (GPT-2 of about 2 million parameters) with its tokenizer."""
    return _asset("language_model")


def reward_model_dir() -> Path:
    """Directory of the shipped reward model, trained on human ratings of movie-review sentences."""
    return _asset("reward_model")


def load_language_model() -> Any:
    """The shipped causal LM, in float32 and evaluation mode."""
    from textenvs.wrappers.reference import load_causal_lm

    return load_causal_lm(language_model_dir())


def load_tokenizer() -> Any:
    """The shipped language model's tokenizer."""
    from textenvs.tokens import tokenizers as text

    return text.load_tokenizer(language_model_dir())


def _asset(name: str) -> Path:
    folder = Path(os.environ.get("TEXTENVS_ASSETS") or Path(__file__).parent / "assets") / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the shipped {name.replace('_', ' ')} is not at {str(folder)!r}; reinstall the package"
        )
    return folder
