"""The run of ``textenvs train-language-model``; its settings are in `config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from agents.recipes.sft.config import TrainLanguageModelConfig
from agents.recipes.sft.from_scratch import FromScratch, encode_reviews, loss_per_token, new_model, train_tokenizer
from agents.recipes.sft.run import COMMANDS, fine_tune
from agents.runs.devices import check_device
from agents.runs.fit_run import fit_in
from agents.runs.lifecycle import TrainingRun, training_run
from agents.runs.plots import FIT_CURVES
from agents.runs.run_dir import write_folder_aside
from reward_models.data.movie_reviews import SHA256, movie_review_splits
from reward_models.fitting import Fit, perplexity_of


def main(config: TrainLanguageModelConfig) -> dict[str, Any]:
    """Train; returns the content of ``summary.json``.

    Raises:
        RunDirError: if the run directory cannot be used.
        ValueError, CheckpointError, FloatingPointError: with a message that says what to do.
        Interrupted: after Ctrl-C or SIGTERM, once checkpoint and model are written.
    """
    config = config.settled()
    check_device(config.device)
    reads = (config.model, config.data, config.heldout_data)
    with training_run(config, script="train_language_model", settings=config.identity(), reads=reads) as run:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        return movie_reviews(config, run) if config.data is None else fine_tune(config, run)


def movie_reviews(config: TrainLanguageModelConfig, run: TrainingRun) -> dict[str, Any]:
    """Train a new model on movie-review sentences; returns the content of ``summary.json``.

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
    fit = Fit(learner, config.fit_options(num_steps))
    finished = fit_in(run, fit)

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
    return run.finish(summary, finished=finished, curves=FIT_CURVES, commands=COMMANDS)
