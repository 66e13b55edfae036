"""Fit a reward model on human preferences by the Bradley–Terry likelihood.

    python -m scripts.train_reward_model --run-dir runs/reward_model
    python -m scripts.train_reward_model --run-dir runs/mine --model DIR --pairs my.jsonl --heldout-pairs heldout.jsonl

Without ``--pairs`` it learns from the Hutto & Gilbert ratings of movie snippets, rater against rater, starting from
the project's small language model. A fifth of the snippets is held out for the figures; a tenth of the others, the
validation part, is what early stopping and calibration look at. Ctrl-C keeps the best weights so far.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress, TextColumn, TimeRemainingColumn

from reward_models.accuracy import gap_accuracy, human_pair_accuracy, rater_accuracy
from reward_models.comparisons import (
    BatchSource,
    ComparisonBatch,
    Mixture,
    PairBatches,
    RatedGroups,
    group_comparisons,
    pair_comparisons,
    split_pairs,
    split_snippets,
)
from reward_models.model import RewardModel
from reward_models.movie_ratings import RatedSnippet, load_rated_snippets, load_rated_words, normalise_text
from reward_models.pairs import PreferencePair, read_pairs
from reward_models.training import FitResult, TrainingOptions, fit
from scripts.front_door import enter
from scripts.movie_reviews import judge_sentences
from scripts.run_dir import CONFIG, SUMMARY, RunDir

LANGUAGE_MODEL = Path(__file__).parent.parent / "textenvs" / "assets" / "language_model"
VALIDATION_SEED = 1
VALIDATION_BATCH = 128
CUT = 24  # tokens; the default budget of a completion


@dataclass(frozen=True, kw_only=True)
class TrainRewardModelConfig:
    """Fit a reward model on human preferences."""

    run_dir: str
    """Folder for the model, config.json, progress.csv, TensorBoard events and summary.json."""
    overwrite: bool = False
    """Throw away a finished run in that folder."""
    model: str = str(LANGUAGE_MODEL)
    """The language model to start from: a directory, or a name, that transformers loads; with its tokenizer."""
    model_dir: str = ""
    """Folder for the reward model. Default: `model` inside the run directory."""
    pairs: str = ""
    """JSONL file of preference pairs (prompt, chosen, rejected, maybe margin). Default: the movie ratings."""
    heldout_pairs: str = ""
    """JSONL file of pairs for the figures. Default: a tenth of `pairs` that shares no text or prompt with the rest."""
    words: bool = True
    """Learn from the human ratings of single words in the same archive, too (movie ratings only)."""
    group_size: int = 64
    """Rated snippets compared with one another in one optimiser step, or, for `pairs`, pairs an optimiser step."""
    seed: int = 0
    """Seed of the head's initialisation, order, dropout and noise; it replaces `training.seed`."""
    device: str = "cpu"
    """Torch device."""
    lora_rank: int | None = None
    """Train a LoRA adapter of this rank and the head only; `train_text --memory adapters` shares its trunk then. None:
    all weights."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """How to fit."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run learns from: training batches, validation batches, and texts for calibration."""

    train: BatchSource
    validation: Sequence[ComparisonBatch]
    reference: Sequence[str]


def main(config: TrainRewardModelConfig) -> dict[str, Any]:
    """Run it; returns what ``summary.json`` holds.

    Raises:
        RunDirError: if the run directory cannot be used.
        ValueError: if model or pairs cannot be used; the message says what to do.
        TrainingDiverged: if the loss is no longer a number.
    """
    with RunDir(config.run_dir, overwrite=config.overwrite) as run:
        run.write_json(CONFIG, dataclasses.asdict(config))
        if config.pairs:
            data, heldout = pair_data(config)
        else:
            data, snippets = rating_data(config)
        torch.manual_seed(config.seed)
        model = RewardModel.from_backbone(config.model, lora_rank=config.lora_rank).to(config.device)
        began = time.perf_counter()
        result = fit_with_progress(model, data, config)
        wall_s = time.perf_counter() - began
        model.calibrate(model.encode(data.reference))
        model.save(config.model_dir or run.path / "model")
        figures = pair_figures(model, heldout) if config.pairs else rating_figures(model, snippets)
        summary: dict[str, Any] = {
            **figures,
            "num_train_pairs": result.num_pairs,
            "validation_loss": result.best_loss,
            "steps": result.steps,
            "seed": config.seed,
            "interrupted": result.interrupted,
            "wall_s": wall_s,
        }
        run.write_json(SUMMARY, summary)
        return summary


def rated_splits() -> tuple[list[RatedSnippet], list[RatedSnippet]]:
    """Training and held-out snippets, without the nine that are also a sentence in one of the judge's reviews."""
    judged = judge_sentences()
    train, heldout = split_snippets(load_rated_snippets())
    return (
        [snippet for snippet in train if normalise_text(snippet.text) not in judged],
        [snippet for snippet in heldout if normalise_text(snippet.text) not in judged],
    )


def rating_data(config: TrainRewardModelConfig) -> tuple[Data, list[RatedSnippet]]:
    """Training and validation parts of the movie ratings, and the held-out snippets."""
    train, heldout = rated_splits()
    train, validation = split_snippets(train, heldout_share=0.1, seed=VALIDATION_SEED)
    sources: list[BatchSource] = [RatedGroups(snippets=train, group_size=config.group_size)]
    if config.words:
        taken = {normalise_text(snippet.text) for snippet in (*validation, *heldout)} | judge_sentences()
        words = [word for word in load_rated_words() if normalise_text(word.text) not in taken]
        sources.append(RatedGroups(snippets=words, group_size=config.group_size))
    num_groups = len(validation) // VALIDATION_BATCH
    batches = [group_comparisons(validation[i::num_groups]) for i in range(num_groups)]
    reference = [snippet.text for snippet in validation]
    return Data(train=Mixture(sources=sources), validation=batches, reference=reference), heldout


def pair_data(config: TrainRewardModelConfig) -> tuple[Data, list[PreferencePair]]:
    """Training and validation parts of a user's pairs, and the held-out pairs."""
    train = read_pairs(config.pairs)
    if config.heldout_pairs:
        heldout = read_pairs(config.heldout_pairs)
    else:
        train, heldout = split_pairs(train)
    train, validation = split_pairs(train, seed=VALIDATION_SEED)
    size = config.group_size
    batches = [pair_comparisons(validation[i : i + size]) for i in range(0, len(validation), size)]
    reference = list(dict.fromkeys(text for batch in batches for text in batch.texts))
    return Data(train=PairBatches(pairs=train, batch_size=size), validation=batches, reference=reference), heldout


def fit_with_progress(model: RewardModel, data: Data, config: TrainRewardModelConfig) -> FitResult:
    """`fit` with a progress bar, progress.csv and TensorBoard events."""
    from stable_baselines3.common.logger import configure

    logger = configure(config.run_dir, ["csv", "tensorboard"])
    options = dataclasses.replace(config.training, seed=config.seed)
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn(), TextColumn("{task.fields[losses]}"))
    with Progress(*columns) as progress:
        task = progress.add_task("reward model", total=None, losses="")

        def on_step(step: int, num_steps: int, loss: float, best: float) -> None:
            losses = f"loss {loss:.3f}  best validation loss {best:.3f}"
            progress.update(task, completed=step, total=num_steps, losses=losses)
            if step % 10 == 0 or step == num_steps:
                logger.record("train/step", step)
                logger.record("train/loss", loss)
                if best < math.inf:
                    logger.record("validation/best_loss", best)
                logger.dump(step)

        try:
            return fit(model, data.train, data.validation, options, on_step=on_step)
        finally:
            logger.close()


def rating_figures(model: RewardModel, heldout: Sequence[RatedSnippet]) -> dict[str, Any]:
    """Accuracies on the held-out snippets; `reward_models.accuracy` defines each.

    ``pair_accuracy`` is over comparisons rater against rater, ``pair_accuracy_gap1`` over snippet pairs whose mean
    ratings differ by at least 1, ``pair_accuracy_gap1_cut`` over the same pairs when each text is cut after 24 tokens.
    """
    rows = model.encode([snippet.text for snippet in heldout])
    scores = model.score_rows(rows)
    lengths = np.array([len(row) for row in rows])
    means = np.array([snippet.mean for snippet in heldout])
    return {
        "pair_accuracy": rater_accuracy(scores, heldout),
        "pair_accuracy_gap1": gap_accuracy(scores, heldout),
        "pair_accuracy_gap1_cut": gap_accuracy(model.score_rows([row[: CUT + 1] for row in rows]), heldout),
        "human_pair_accuracy": human_pair_accuracy(heldout),
        "num_heldout_pairs": len(heldout) * (len(heldout) - 1) // 2,
        "correlation_with_mean_rating": correlation(scores, means),
        "correlation_with_length": correlation(scores, lengths),
        "human_correlation_with_length": correlation(means, lengths),
    }


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's correlation in [-1, 1]; None if either is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else None


def pair_figures(model: RewardModel, heldout: Sequence[PreferencePair]) -> dict[str, Any]:
    """Accuracy on held-out pairs. Pairs do not say how far apart they are or who chose: those figures are None."""
    batch = pair_comparisons(heldout)
    scores = model.score_rows(model.encode(batch.texts))
    lead = scores[batch.chosen] - scores[batch.rejected]
    return {
        "pair_accuracy": float(((lead > 0) + 0.5 * (lead == 0)).mean()),
        "pair_accuracy_gap1": None,
        "human_pair_accuracy": None,
        "num_heldout_pairs": len(heldout),
    }


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; returns the exit code: 0, 2 on bad input, 130 after Ctrl-C."""
    return enter(TrainRewardModelConfig, main, description=__doc__, arguments=arguments)


if __name__ == "__main__":
    sys.exit(command_line())
