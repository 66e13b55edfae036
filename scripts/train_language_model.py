"""Train the project's small language model: a GPT-2 over movie-review sentences, from scratch.

    python -m scripts.train_language_model --run-dir runs/language_model

A byte-pair tokenizer (lower case, `vocab_size` entries) is fitted first. Rows are runs of consecutive sentences of one
review, each sentence closed by the end-of-text token that also opens a row; row lengths are mixed so that both a lone
sentence and a sentence in its context are learnt. Validation perplexity is per token, on lone held-out sentences.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from agents.logging import FileSink
from scripts.front_door import enter
from scripts.movie_reviews import SHA256, movie_review_splits
from scripts.run_dir import CONFIG, SUMMARY, RunDir, write_folder_aside

END_OF_TEXT = "<|endoftext|>"
ROW_LENGTHS = (32, 64, 96)
QUICK = 512  # validation sentences that are looked at while training; all of them are at the end


@dataclass(frozen=True, kw_only=True)
class TrainLanguageModelConfig:
    """Train the small language model on movie-review sentences."""

    run_dir: str
    """Folder for the model, the tokenizer, config.json and summary.json."""
    overwrite: bool = False
    """Throw away a finished run in that folder."""
    seed: int = 0
    """Seed of initialisation and data order."""
    device: str = "cpu"
    """Torch device."""
    vocab_size: int = 2048
    """Entries of the byte-pair vocabulary, the end-of-text token included."""
    num_layers: int = 4
    """Transformer blocks."""
    width: int = 192
    """Embedding width, a multiple of the number of heads."""
    num_heads: int = 4
    """Attention heads."""
    max_length: int = 128
    """Longest row in tokens the model has positions for."""
    train_tokens: int = 9_000_000
    """Tokens to train on, repeats included."""
    batch_tokens: int = 2048
    """Tokens an optimiser step."""
    learning_rate: float = 2.5e-3
    """Peak learning rate of AdamW; 2% linear warm-up, cosine to a twentieth."""
    weight_decay: float = 0.1
    """AdamW weight decay on matrices."""
    eval_every: int = 500
    """Optimiser steps between validations."""


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
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return tokens, mask


def next_token_loss(model: GPT2LMHeadModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """Sum of negative log-likelihoods (nats) of ``tokens[:, 1:]`` where ``mask``."""
    # Rows are padded on the right only, so causal attention needs no mask.
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    targets = tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


@torch.no_grad()
def perplexity(model: GPT2LMHeadModel, rows: list[list[int]], device: str) -> float:
    """exp of the mean negative log-likelihood per token of rows that open with the start token."""
    total, count = 0.0, 0
    for i in range(0, len(rows), 64):
        tokens, mask = (x.to(device) for x in pad_rows(rows[i : i + 64]))
        total += next_token_loss(model, tokens, mask).item()
        count += int(mask[:, 1:].sum())
    return math.exp(total / count)


def main(config: TrainLanguageModelConfig) -> dict[str, Any]:
    """Run it; returns what ``summary.json`` holds.

    Raises:
        RunDirError: if the run directory cannot be used.
        ValueError: if the data is not the data this was measured with.
    """
    with RunDir(config.run_dir, overwrite=config.overwrite) as run:
        run.write_json(CONFIG, dataclasses.asdict(config))
        torch.manual_seed(config.seed)
        splits = movie_review_splits()
        sentences = [sentence for review in splits.train for sentence in review]
        tokenizer = train_tokenizer(sentences, config.vocab_size, config.max_length)
        reviews = encode_reviews(tokenizer, splits.train)
        heldout = encode_reviews(tokenizer, [splits.validation])[0]
        validation = [[tokenizer.bos_token_id, *sentence][: config.max_length] for sentence in heldout]
        model = new_model(config, tokenizer)
        model.to(torch.device(config.device))  # type: ignore[arg-type]
        data = batches(reviews, tokenizer.bos_token_id, config.batch_tokens, random.Random(config.seed))
        began = time.perf_counter()
        steps, interrupted = fit(model, data, validation[:QUICK], config)
        wall_s = time.perf_counter() - began

        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        write_folder_aside(run.path / "model", save)
        summary: dict[str, Any] = {
            "seed": config.seed,
            "parameters": sum(p.numel() for p in model.parameters()),
            "train_sentences": len(sentences),
            "train_tokens": steps * config.batch_tokens,
            "validation_sentences": len(validation),
            "validation_perplexity": perplexity(model, validation, config.device),
            "data_sha256": SHA256,
            "wall_s": wall_s,
        }
        if interrupted:
            return summary | {"interrupted": True}
        run.write_json(SUMMARY, summary)
        return summary


def new_model(config: TrainLanguageModelConfig, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 with random weights and without dropout."""
    end_of_text = tokenizer.bos_token_id
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


def fit(
    model: GPT2LMHeadModel,
    data: Iterator[tuple[Tensor, Tensor]],
    validation: list[list[int]],
    config: TrainLanguageModelConfig,
) -> tuple[int, bool]:
    """Train in place, with a progress bar. Returns the optimiser steps taken, and whether Ctrl-C ended it."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    num_steps = max(1, config.train_tokens // config.batch_tokens)
    sink = FileSink(config.run_dir)
    step = 0
    try:
        for step in track(range(num_steps), "language model"):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, num_steps)
            tokens, mask = (x.to(config.device) for x in next(data))
            loss = next_token_loss(model, tokens, mask) / mask[:, 1:].sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % config.eval_every == 0:
                current = perplexity(model, validation, config.device)
                sink.write({"train/loss": loss.item(), "validation/perplexity": current}, step + 1)
    except KeyboardInterrupt:
        return step, True
    finally:
        sink.close()
    return num_steps, False


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Share of the peak learning rate at ``step``: linear warm-up over 2% of the steps, cosine to a twentieth."""
    warmup = max(1, num_steps // 50)
    return min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / num_steps)))


if __name__ == "__main__":
    sys.exit(enter(TrainLanguageModelConfig, main, description=__doc__))
