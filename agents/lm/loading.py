"""Checks before a language model is loaded: existence, dtype and end-of-text token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig

from textenvs.tokens.tokenizers import load_tokenizer

if TYPE_CHECKING:
    pass

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def autocast_of(dtype: str) -> torch.dtype | None:
    """The autocast dtype of the setting ``dtype``; None: no autocast."""
    return None if dtype == "float32" else DTYPES[dtype]


def check_model(path: str) -> None:
    """Raise ValueError unless ``path`` holds a model with a tokenizer; no weights are loaded."""
    load_tokenizer(path)
    try:
        AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: expected a language model: {error}") from error
