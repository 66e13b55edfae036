"""Settled before a language model is loaded: that there is one, its number type, and where its texts end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig

from textenvs.tokens.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def autocast_of(dtype: str) -> torch.dtype | None:
    """The type that matrix products are cast to under the setting ``dtype``; None where nothing is cast."""
    return None if dtype == "float32" else DTYPES[dtype]


def end_of_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text: of those that the model's configuration names, the tokenizer's, or else the first.

    Chat models name several, and their template ends a turn with the tokenizer's.

    Raises:
        ValueError: if the configuration names none.
    """
    named = model.config.eos_token_id
    if named is None or named == []:
        raise ValueError(f"{model.name_or_path}: config.json names no end-of-text token: set eos_token_id in it")
    ends = named if isinstance(named, list) else [named]
    return int(tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0])


def check_model(path: str) -> None:
    """Raise unless ``path`` holds a model with a tokenizer; no weights are loaded.

    Raises:
        ValueError: naming the path.
    """
    load_tokenizer(path)
    try:
        AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: no language model could be loaded from there: {error}") from error
