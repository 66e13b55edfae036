"""The run of ``textenvs train-language-model``; its settings are in `config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from agents.recipes.sft.config import TrainLanguageModelConfig
from agents.recipes.sft.fit_run import CHECKPOINT, fit_in
from agents.recipes.sft.from_scratch import FromScratch, encode_reviews, loss_per_token, new_model, train_tokenizer
from agents.recipes.sft.run import fine_tune
from agents.runs.devices import check_device
from agents.runs.run_dir import SUMMARY, RunDir, write_folder_aside
from reward_models.data.movie_reviews import SHA256, movie_review_splits
from reward_models.fitting import perplexity_of


def main(config: TrainLanguageModelConfig) -> dict[str, Any]:
    """Run it; returns what ``summary.json`` holds, or after Ctrl-C ``{"interrupted": True, ...}`` so far.

    Raises:
        RunDirError: if the run directory cannot be used.
        ValueError, CheckpointError, FloatingPointError: each with a message that says what to do.
    """
    config = config.settled()
    check_device(config.device)
    reads = (config.model, config.data, config.heldout_data)
    with RunDir(
        config.run_dir, script="train_language_model", overwrite=config.overwrite, resume=config.resume, reads=reads
    ) as run:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if config.resume:
            run.check_resumable(config.identity(), CHECKPOINT)
        return movie_reviews(config, run) if config.data is None else fine_tune(config, run)


def movie_reviews(config: TrainLanguageModelConfig, run: RunDir) -> dict[str, Any]:
    """A new model over movie-review sentences; returns what ``summary.json`` holds.

    Raises:
        ValueError: if the data is not the data this was measured with.
    """
    assert config.max_length is not None
    assert config.train_tokens is not None
    assert config.batch_tokens is not None
    torch.manual_seed(config.seed)
    splits = movie_review_splits()
    sentences = [sentence for review in splits.train for sentence in review]
    tokenizer = train_tokenizer(sentences, config.vocab_size, config.max_length)
    reviews = encode_reviews(tokenizer, splits.train)
    heldout = encode_reviews(tokenizer, [splits.validation])[0]
    validation = [[tokenizer.bos_token_id, *sentence][: config.max_length] for sentence in heldout]
    model = new_model(config, tokenizer)
    model.to(torch.device(config.device))  # type: ignore[arg-type]
    num_steps = max(1, config.train_tokens // config.batch_tokens)
    learner = FromScratch(model, reviews, validation, config)
    run.begin(config.identity())
    fit, finished = fit_in(run, learner, config.fit_options(num_steps), resume=config.resume)

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    write_folder_aside(run.path / "model", save)
    summary: dict[str, Any] = {
        "seed": config.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_sentences": len(sentences),
        "train_tokens": fit.progress.step * config.batch_tokens,
        "validation_sentences": len(validation),
        "validation_perplexity": perplexity_of(loss_per_token(model, validation, config.device)),
        "data_sha256": SHA256,
        "wall_s": fit.progress.seconds,
    }
    if not finished:
        return summary | {"interrupted": True}
    run.write_json(SUMMARY, summary)
    return summary
