"""Checks before a language model is loaded: existence, dtype and end-of-text token."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from textenvs.tokens.tokenizers import check_source, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def autocast_of(dtype: str) -> torch.dtype | None:
    """The autocast dtype of the setting ``dtype``; None: no autocast."""
    return None if dtype == "float32" else DTYPES[dtype]


def check_model(path: str) -> None:
    """Raise ValueError unless ``path`` holds a model with a tokenizer; no weights are loaded."""
    load_tokenizer(path)
    weightless(path)


def weightless(path: str) -> Any:
    """The causal LM that ``path`` describes, on the meta device: shapes and no numbers.

    Raises:
        ValueError: if there is none.
    """
    check_source(path)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
    except Exception as error:  # a broken config.json fails in as many ways as there are model families
        raise ValueError(f"{path}: expected a language model: {type(error).__name__}: {error}") from error
