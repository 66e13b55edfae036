"""The tokenizer protocol of the environments; loading, comparing and decoding with tokenizers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from textenvs.tokens.rows import PAD, Ids, concatenate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


HUB_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
"""A regular expression: "owner/name"."""


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


def load_tokenizer(
    path: str | os.PathLike[str], variables: Mapping[str, Any] | None = None, now: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model: a directory, or a name that `transformers` knows.

    ``variables`` are what its chat template reads beside the turns, and ``now`` (ISO) the time that it writes, each
    time that it is used; neither is saved.

    Raises:
        ValueError: none can be loaded.
    """
    from transformers import AutoTokenizer

    name = os.fspath(path)
    check_source(name)
    # Given a directory without a tokenizer, transformers 5 makes up an empty one for some model families.
    patterns = ("tokenizer.*", "vocab.*", "tekken.json", "*.model", "*.tiktoken")
    if Path(name).is_dir() and not any(any(Path(name).glob(pattern)) for pattern in patterns):
        raise ValueError(f"{name}: no tokenizer there; save the model's tokenizer into the same directory")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, local_files_only=Path(name).is_dir())
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ValueError(f"{name}: no tokenizer could be loaded from there: {fault}") from fault
    variables, template = dict(variables or {}), tokenizer.chat_template
    if now is not None and isinstance(template, str) and "strftime_now" in template:
        write = datetime.fromisoformat(now).strftime
        dated = re.sub(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: repr(write(call[2])), template)
        variables["chat_template"] = dated  # transformers passes no functions to templates
    if variables:
        cast(Any, tokenizer).apply_chat_template = partial(tokenizer.apply_chat_template, **variables)
    return tokenizer


def open_ids(tokenizer: Any, text: str, ids: Sequence[int] | None = None) -> list[int]:
    """Token ids of a text that goes on, from its ``ids`` as tokenized alone.

    They have no end of text that the tokenizer appended, and no beginning of text before one that is written in it.
    """
    ids = list(tokenizer(text)["input_ids"] if ids is None else ids)
    bos, eos = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    twice, ended = bos is not None and ids[:2] == [bos, bos], eos is not None and len(ids) > 1 and ids[-1] == eos
    if twice or ended:
        written = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if ended and ids[-1 - len(written) : -1] == written:
            ids = ids[:-1]
        if twice and written[:1] == [bos]:
            ids = ids[1:]
    return ids


def check_source(name: str) -> None:
    """Raise ValueError, within seconds, unless ``name`` is a folder, a model in the cache, or of a hub that answers."""
    from huggingface_hub import constants, try_to_load_from_cache

    if Path(name).is_file():
        raise ValueError(f"{name}: expected a model's folder or name, received a file")
    named = re.fullmatch(rf"{HUB_NAME}|[\w-][\w.-]*", name) is not None
    if Path(name).is_dir():
        return check_whole(name)
    if named and isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    if not named:
        raise ValueError(f"{name}: expected a model's folder, and there is none of that name")
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        _ask(constants.ENDPOINT)
    except OSError as fault:
        raise ValueError(
            f"{name}: expected a model's folder or name; there is no such folder, and {constants.ENDPOINT} cannot be "
            f"asked for the name ({fault})"
        ) from fault


@lru_cache
def _ask(endpoint: str) -> None:
    """Raise OSError unless a hub answers within seconds: transformers would try for a minute. Once it did, it is not
    asked again."""
    with suppress(HTTPError):
        urlopen(Request(endpoint, method="HEAD"), timeout=3).close()


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
