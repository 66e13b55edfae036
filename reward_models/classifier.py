"""Reward models as transformers has them, `AutoModelForSequenceClassification` with one label: read, and written.

`RewardClassifier` scores with one of any architecture; `as_classifier` is the form in which a `RewardModel` is saved.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from reward_models.padding import num_positions, right_padded
from textenvs.lm.loading import load_classifier
from textenvs.tokens.chats import chat_ids, chat_text
from textenvs.tokens.tokenizers import load_tokenizer


class RewardClassifier:
    """Scores texts by the logit of a sequence classifier; a scorer: ``model(prompts, completions) -> [N]``.

    With a chat template the prompt is the user's turn and the completion the assistant's. Otherwise the model reads
    ``prompt + completion`` with the special tokens that its tokenizer adds, and ``eos`` if the text is finished.

    Raises:
        ValueError: more than one label.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        if model.config.num_labels != 1:
            labels = ", ".join(map(str, (model.config.id2label or {}).values()))
            raise ValueError(f"reward model: expected one label, received {model.config.num_labels} ({labels})")
        self.model, self.reader = model.eval(), copy.deepcopy(tokenizer)
        self.reader.truncation_side = "left"
        self.max_length = num_positions(model)

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> RewardClassifier:
        """The classifier of a directory, or a name that transformers knows; ValueError names what is wrong with it."""
        return cls(load_classifier(path).to(device), load_tokenizer(path))

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *, finished: Sequence[bool] | bool = True
    ) -> np.ndarray:
        """Scores ``[N]`` float32; see the class. ValueError for a text in place of a list of texts."""
        check_lists(prompts, completions)
        flags = [finished] * len(prompts) if isinstance(finished, bool) else finished
        rows = [self.encode(*text) for text in zip(prompts, completions, flags, strict=True)]
        pad = self.model.config.get_text_config().pad_token_id
        size = 1 if pad is None else 64  # without a padding token transformers reads the last column
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        scores = np.empty(len(rows), dtype=np.float32)
        for part in (order[start : start + size] for start in range(0, len(order), size)):
            tokens, mask = right_padded([rows[index] for index in part], self.max_length, pad or 0)
            batch = {"input_ids": tokens.to(self.model.device), "attention_mask": mask.to(self.model.device).long()}
            scores[part] = self.model(**batch).logits[:, 0].float().cpu().numpy()
        return scores

    def encode(self, prompt: str, completion: str, finished: bool = True) -> list[int]:
        """Token ids of one text."""
        if getattr(self.reader, "chat_template", None):
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            return chat_ids(self.reader, chat_text(self.reader, turns, answering=False))
        cut = {"truncation": True, "max_length": self.max_length - 1}  # with room for eos
        row, eos = list(self.reader(prompt + completion, **cut)["input_ids"]), self.reader.eos_token_id
        return [*row, eos] if finished and eos is not None and row[-1:] != [eos] else row


def check_lists(*given: Sequence[str]) -> None:
    """Raise ValueError for a text in place of a list of texts: its letters would be scored."""
    for texts in given:
        if isinstance(texts, str):
            raise ValueError(f"expected a list of texts, received the text {texts!r:.80}")


def as_classifier(backbone: Any, tokenizer: Any, weights: dict[str, Tensor]) -> tuple[Any, Any, dict[str, Tensor]]:
    """Configuration, tokenizer and weights of a `RewardModel` by the names of a sequence classifier of transformers.

    Its logit is the head's output at the last token that is no padding, so padding is never the end of a text: without
    another token for it there is none, and transformers takes one text at a time. Architectures whose classifiers have
    other heads (most encoders) are returned as they are.
    """
    config, tokenizer = copy.deepcopy(backbone.config), copy.deepcopy(tokenizer)
    renamed = {name.replace("backbone", backbone.base_model_prefix, 1): part for name, part in weights.items()}
    renamed["score.weight"] = renamed.pop("head.weight")
    config.num_labels = 1
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError:  # transformers has none of this architecture
        return backbone.config, tokenizer, weights
    if classifier.state_dict().keys() != renamed.keys():
        return backbone.config, tokenizer, weights
    ends = (None, tokenizer.eos_token_id)
    pads = [pad for pad in (tokenizer.pad_token_id, tokenizer.bos_token_id) if pad not in ends]
    config.architectures, config.pad_token_id = [type(classifier).__name__], pads[0] if pads else None
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pads[0]) if pads else None
    return config, tokenizer, renamed


def as_reward_model(weights: dict[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    """The inverse of `as_classifier` for weights."""
    if "score.weight" not in weights:
        return weights
    names = {"score.weight": "head.weight"}
    own = re.compile(rf"^{backbone.base_model_prefix}(?=\.)")
    return {names.get(name) or own.sub("backbone", name): part for name, part in weights.items()}
