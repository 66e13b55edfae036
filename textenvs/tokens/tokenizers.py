"""The tokenizer protocol of the environments; loading, comparing and decoding with tokenizers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from textenvs.tokens.rows import PAD, Ids, concatenate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokenizer(Protocol):
    """The part of a `transformers` tokenizer that environments use."""

    def __call__(self, text: str, /) -> Mapping[str, Any]:
        """A mapping whose "input_ids" are the token ids of `text`."""

    def decode(self, token_ids: list[int], **kwargs: Any) -> str | list[str]:
        """The text of `token_ids`."""

    def __len__(self) -> int:
        """Entries of the vocabulary, added tokens included."""


def check_whole(name: str) -> None:
    """Raise ValueError if the folder ``name`` holds an adapter in place of a model."""
    adapter = Path(name) / "adapter_config.json"
    if adapter.exists() and not (Path(name) / "config.json").exists():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise ValueError(
            f"{name}: expected a whole model, received a LoRA adapter of {base}: give that model, and this folder as "
            f"the adapter (train-text --model {base} --memory adapters --adapter {name}), or the merged model"
        )


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model: a directory, or a name that `transformers` knows.

    Raises:
        ValueError: none can be loaded.
    """
    from transformers import AutoTokenizer

    name = os.fspath(path)
    check_whole(name)
    # Given a directory without a tokenizer, transformers 5 makes up an empty one for some model families.
    patterns = ("tokenizer.*", "vocab.*", "tekken.json", "*.model", "*.tiktoken")
    if Path(name).is_dir() and not any(any(Path(name).glob(pattern)) for pattern in patterns):
        raise ValueError(f"{name}: no tokenizer there; save the model's tokenizer into the same directory")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, local_files_only=Path(name).is_dir())
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ValueError(f"{name}: no tokenizer could be loaded from there: {fault}") from fault
    return tokenizer


def same_tokenizer(first: object, second: object) -> bool:
    """Whether both map every token id to the same text and every text to the same ids.

    Fast ones are compared by serialized form (without padding and truncation, which calls may change), others by class,
    vocabulary and special tokens.
    """
    return first is second or _identity(first) == _identity(second)


def _identity(tokenizer: Any) -> tuple[Any, ...]:
    special = {name: str(token) for name, token in getattr(tokenizer, "special_tokens_map", {}).items()}
    special.pop("pad_token", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        serialized = json.loads(backend.to_str())
        return {key: value for key, value in serialized.items() if key not in ("padding", "truncation")}, special
    return type(tokenizer), tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else id(tokenizer), special


def decode_rows(tokenizer: Tokenizer, prompts: Ids, completions: Ids) -> tuple[list[str], list[str]]:
    """Text of N prompts ``[N, P]`` and of their completions ``[N, T]``, padded with PAD, without special tokens.

    A completion is the rest of the joint text after the prompt's, which keeps the space between the two for tokenizers
    that drop a leading one; prompt + completion is the joint text.
    """

    def decode(row: Ids) -> str:
        ids = row[row != PAD].tolist()
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    texts, tails = [], []
    for prompt, completion, joint in zip(prompts, completions, concatenate(prompts, completions), strict=True):
        text, whole = decode(prompt), decode(joint)
        texts.append(text)
        tails.append(whole[len(text) :] if whole.startswith(text) else decode(completion))
    return texts, tails
