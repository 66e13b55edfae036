"""A small GPT-2 over movie-review sentences, from scratch: its tokenizer, its rows, its loss.

A byte-pair tokenizer (lower case) is fitted first. Rows are runs of consecutive sentences of one review, each sentence
closed by the end-of-text token that also opens a row; row lengths are mixed so that both a lone sentence and a sentence
in its context are learned. Validation perplexity is per token, on lone held-out sentences.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from agents.recipes.sft.config import TrainLanguageModelConfig
from reward_models.fit_options import StepResult

END_OF_TEXT = "<|endoftext|>"
ROW_LENGTHS = (32, 64, 96)
QUICK = 512  # validation sentences that are looked at while training; all of them are at the end


def train_tokenizer(texts: list[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Fit a lower-casing byte-level BPE tokenizer whose end-of-text token opens and closes a text."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    start = core.token_to_id(END_OF_TEXT)
    core.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, start)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def encode_reviews(tokenizer: PreTrainedTokenizerFast, reviews: list[list[str]]) -> list[list[list[int]]]:
    """Token ids of every sentence of every review, each closed by the end-of-text token."""
    flat = [sentence for review in reviews for sentence in review]
    ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    return [[[*next(ids), tokenizer.eos_token_id] for _ in review] for review in reviews]


def rows_of(review: list[list[int]], length: int, start: int) -> Iterator[list[int]]:
    """Rows of at most ``length`` tokens, each opening at a sentence; a sentence cut by a row's end opens the next."""
    row = [start]
    for sentence in review:
        if len(row) > 1 and len(row) + len(sentence) > length:
            yield (row + sentence)[:length]
            row = [start]
        row = row + sentence
    yield row[:length]


def batches(
    reviews: list[list[list[int]]], start: int, batch_tokens: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless ``(tokens [B, T], mask [B, T])``, rows of like length together, every review once an epoch."""
    while True:
        by_length: dict[int, list[list[int]]] = {length: [] for length in ROW_LENGTHS}
        for review in reviews:
            length = rng.choice(ROW_LENGTHS)
            by_length[length] += rows_of(review, length, start)
        epoch = []
        for length, rows in by_length.items():
            rng.shuffle(rows)
            size = batch_tokens // length
            epoch += [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
        rng.shuffle(epoch)
        for rows in epoch:
            yield pad_rows(rows)


def pad_rows(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Right-pad with 0 to ``tokens [B, T]``, with ``mask [B, T]`` True on real tokens."""
    tokens = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return tokens, pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)


def next_token_loss(model: GPT2LMHeadModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """Sum of negative log-likelihoods (nats) of ``tokens[:, 1:]`` where ``mask``."""
    # Rows are padded on the right only, so causal attention needs no mask.
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    targets = tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


@torch.no_grad()
def loss_per_token(model: GPT2LMHeadModel, rows: list[list[int]], device: str) -> float:
    """Mean negative log-likelihood, nats per token, of rows that open with the start token."""
    total, count = 0.0, 0
    for i in range(0, len(rows), 64):
        tokens, mask = (x.to(device) for x in pad_rows(rows[i : i + 64]))
        total += next_token_loss(model, tokens, mask).item()
        count += int(mask[:, 1:].sum())
    return total / count


def new_model(config: TrainLanguageModelConfig, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 with random weights and without dropout, as large as ``config`` says once it is settled."""
    end_of_text = tokenizer.bos_token_id
    assert config.max_length is not None
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=config.max_length,
            n_embd=config.width,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            activation_function="gelu_pytorch_tanh",  # GPT-2's gelu in one fused kernel
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end_of_text,
            eos_token_id=end_of_text,
            pad_token_id=end_of_text,
        )
    )


@dataclass(eq=False)
class FromScratch:
    """A new model over reviews, as `reward_models.fitting` trains it."""

    module: GPT2LMHeadModel
    """Trained in place."""
    reviews: list[list[list[int]]]
    """Token ids of the sentences of each."""
    validation: list[list[int]]
    """Rows that open with the start token."""
    config: TrainLanguageModelConfig
    """Settled."""

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """As the function of that name, from the configuration's seed."""
        config = self.config
        start = self.module.config.bos_token_id
        assert config.batch_tokens is not None
        assert start is not None
        return batches(self.reviews, start, config.batch_tokens, random.Random(config.seed))

    def gradient(self, batch: tuple[Tensor, Tensor]) -> StepResult:
        """Of the mean loss of a batch."""
        tokens, mask = (x.to(self.config.device) for x in batch)
        loss = next_token_loss(self.module, tokens, mask) / mask[:, 1:].sum()
        loss.backward()
        return StepResult(loss.item(), int(mask.sum()))

    def heldout_loss(self) -> float:
        """Nats per token of the first validation sentences."""
        return loss_per_token(self.module, self.validation[:QUICK], self.config.device)

    def fingerprint(self) -> int:
        """A checksum of the training rows' tokens."""
        flat = [token for review in self.reviews for sentence in review for token in sentence]
        return zlib.crc32(np.array(flat, dtype=np.int32).tobytes())
