"""Checks before a language model is loaded: existence, dtype and end-of-text token."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from textenvs.tokens.tokenizers import check_source, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolved(dtype: str, device: str | torch.device) -> str:
    """The setting ``dtype`` with "auto" replaced: "bfloat16" on a CUDA device that has it, "float32" elsewhere;
    ValueError for an unknown one."""
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f'dtype: expected "auto", "float32" or "bfloat16", received {dtype!r}')
    if dtype != "auto":
        return dtype
    # Where there is none, its memory is only planned.
    has = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if str(device).partition(":")[0] == "cuda" and has else "float32"


def autocast_of(dtype: str, device: str | torch.device) -> torch.dtype | None:
    """The autocast dtype of the setting ``dtype``; None: no autocast."""
    name = resolved(dtype, device)
    return None if name == "float32" else DTYPES[name]


def check_model(path: str) -> None:
    """Raise ValueError unless ``path`` holds a model with a tokenizer; no weights are loaded."""
    load_tokenizer(path)
    weightless(path)


def weightless(path: str) -> Any:
    """The causal LM that ``path`` describes, on the meta device: shapes and no numbers; ValueError if there is none."""
    check_source(path)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
    except Exception as error:  # a broken config.json fails in as many ways as there are model families
        raise ValueError(f"{path}: expected a language model: {type(error).__name__}: {error}") from error
