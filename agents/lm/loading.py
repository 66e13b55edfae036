"""Checks before a language model is loaded: existence, dtype and end-of-text token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig

from textenvs.tokens.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def autocast_of(dtype: str) -> torch.dtype | None:
    """The autocast dtype of the setting ``dtype``; None: no autocast."""
    return None if dtype == "float32" else DTYPES[dtype]


def end_of_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text: the tokenizer's, if the model's configuration lists it, or else the first of those.

    Chat models list several, and their template ends a turn with the tokenizer's.

    Raises:
        ValueError: if the configuration names none.
    """
    named = model.config.eos_token_id
    if named is None or named == []:
        raise ValueError(f"{model.name_or_path}: expected an eos_token_id in config.json, received none")
    ends = named if isinstance(named, list) else [named]
    return int(tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0])


def check_model(path: str) -> None:
    """Raise ValueError unless ``path`` holds a model with a tokenizer; no weights are loaded."""
    load_tokenizer(path)
    try:
        AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: expected a language model: {error}") from error
