"""Between tokens and text: what the environments ask of a tokenizer, whether two are the same, and decoding of rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from textenvs.tokens.rows import PAD, concatenate


class Tokenizer(Protocol):
    """The part of a `transformers` tokenizer that environments use."""

    def __call__(self, text: str) -> Any:
        """A mapping whose "input_ids" are the token ids of `text`."""

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        """The text of `token_ids`."""

    def __len__(self) -> int:
        """Entries of the vocabulary, added tokens included."""


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The tokenizer beside a model: a directory, or a name that `transformers` knows.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoTokenizer

    name = os.fspath(path)
    # Given a directory without a tokenizer, transformers 5 makes up an empty one for some model families.
    kinds = ("tokenizer.*", "vocab.*", "tekken.json", "*.model", "*.tiktoken")
    if Path(name).is_dir() and not any(any(Path(name).glob(kind)) for kind in kinds):
        raise ValueError(f"{name}: no tokenizer there; save the model's tokenizer into the same directory")
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=Path(name).is_dir())
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ValueError(f"{name}: no tokenizer could be loaded from there: {fault}") from fault


def same_tokenizer(first: Any, second: Any) -> bool:
    """Whether both give every token id the same text and every text the same ids.

    Fast tokenizers are compared by what they serialize to (padding and truncation aside, which calls may change),
    others by class, vocabulary and special tokens.
    """
    return first is second or _identity(first) == _identity(second)


def _identity(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = {
        name: str(token) for name, token in getattr(tokenizer, "special_tokens_map", {}).items() if name != "pad_token"
    }
    if backend is not None:
        serialized = json.loads(backend.to_str())
        return {key: value for key, value in serialized.items() if key not in ("padding", "truncation")}, special
    return type(tokenizer), tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else id(tokenizer), special


def decode_rows(
    tokenizer: Any, prompts: NDArray[np.int64], completions: NDArray[np.int64]
) -> tuple[list[str], list[str]]:
    """Text of N prompts and of what was written after them, special tokens left out.

    A completion is what the joint text has beyond the prompt's, so that the space between the two is not lost to
    tokenizers that drop a leading one; prompt + completion is the joint text.

    Args:
        tokenizer: with ``decode``.
        prompts: ``[N, P]`` padded with PAD.
        completions: ``[N, T]`` padded with PAD.
    """
    texts, tails = [], []
    for prompt, completion, joint in zip(prompts, completions, concatenate(prompts, completions), strict=True):
        text, whole = (
            tokenizer.decode(row[row != PAD].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for row in (prompt, joint)
        )
        if not whole.startswith(text):
            whole = text + tokenizer.decode(
                completion[completion != PAD].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        texts.append(text)
        tails.append(whole[len(text) :])
    return texts, tails
