"""Fit a reward model on human preferences by the Bradley–Terry likelihood.

    textenvs train-reward-model --run-dir runs/reward_model
    textenvs train-reward-model --run-dir runs/mine --model DIR --pairs my.jsonl --heldout-pairs heldout.jsonl
    textenvs train-reward-model --run-dir runs/ensemble --members 4 --lora-rank 8

Without ``--pairs`` it learns from the Hutto & Gilbert ratings of movie snippets, rater against rater, starting from
the project's small language model. A fifth of the snippets is held out for the figures; a tenth of the others, the
validation part, is what early stopping and calibration look at. With ``--members`` it fits several models, one after
the other, that differ by their seeds, and keeps them as an ensemble; with ``--lora-rank`` they are adapters over one
language model. ``reliability.json`` and ``reliability.png`` show how sure the result is where it is right. Ctrl-C keeps
the best weights so far, and the members that were finished.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, TextColumn, TimeRemainingColumn

from agents.runs.cli import enter
from agents.runs.devices import check_device
from agents.runs.run_dir import SUMMARY, RunDir, lies_in, write_folder_aside
from reward_models.data.comparisons import (
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
from reward_models.data.movie_ratings import RatedSnippet, load_rated_snippets, load_rated_words, normalize_text
from reward_models.data.movie_reviews import judge_sentences
from reward_models.data.pairs import PreferencePair, read_pairs
from reward_models.ensemble import RewardEnsemble, is_ensemble, new_members
from reward_models.evaluation.report import BINS, PICTURE, bins_table, draw_bins, pair_report, rating_report
from reward_models.files import DESCRIPTION
from reward_models.model import RewardModel
from reward_models.training import FitResult, TrainingOptions, fit
from textenvs import assets

LANGUAGE_MODEL = assets.language_model_dir()
VALIDATION_SEED = 1
VALIDATION_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class TrainRewardModelConfig:
    """Fit a reward model on human preferences."""

    run_dir: str
    """Folder for the model, config.json, progress.csv, TensorBoard events and summary.json."""
    overwrite: bool = False
    """Throw away a finished run in that folder, and the reward model in `model_dir`."""
    model: str = str(LANGUAGE_MODEL)
    """The language model to start from: a directory, or a name, that transformers loads; with its tokenizer."""
    model_dir: str = ""
    """Folder for the reward model; with overwrite a reward model there is replaced. Default: `model` inside the run
    directory."""
    pairs: str = ""
    """JSONL file of preference pairs (prompt, chosen, rejected, maybe margin). Default: the movie ratings."""
    heldout_pairs: str = ""
    """JSONL file of pairs for the figures. Default: a tenth of `pairs` that shares no text or prompt with the rest."""
    words: bool = True
    """Learn from the human ratings of single words in the same archive, too (movie ratings only)."""
    group_size: int = 64
    """Rated snippets compared with one another in one optimizer step, or, for `pairs`, pairs an optimizer step."""
    seed: int = 0
    """Seed of the head's initialization, order, dropout and noise; it replaces `training.seed`. Member i of an ensemble
    has seed + 1000 i."""
    device: str = "cpu"
    """Torch device."""
    members: int = 1
    """Models to fit, each with a seed of its own. More than 1: the folder holds an ensemble, which `train_text` takes
    like a single model (4 or 5 are usual: Coste et al. 2023, arXiv:2310.02743)."""
    lora_rank: int | None = None
    """Train a LoRA adapter of this rank and the head only; `train_text --memory adapters` shares its trunk then. None:
    all weights."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """How to fit."""

    def __post_init__(self) -> None:
        for name in ("members", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"lora_rank must be at least 1, or None for all weights, received {self.lora_rank}")
        if self.heldout_pairs and not self.pairs:
            raise ValueError("heldout_pairs needs pairs: movie ratings have held-out snippets of their own")
        if self.pairs and not self.words:
            raise ValueError("words are of the movie ratings, and pairs are learned from instead: leave no-words out")

    @property
    def reads(self) -> tuple[str, ...]:
        """Files and folders that the run is made from."""
        return tuple(path for path in (self.model, self.pairs, self.heldout_pairs) if path)


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
    check_device(config.device)
    if config.model_dir:
        _refuse_to_bury(Path(config.model_dir), config)
    run_dir, reads = config.run_dir, config.reads
    with RunDir(run_dir, script="train_reward_model", overwrite=config.overwrite, reads=reads) as run:
        if config.pairs:
            data, heldout = pair_data(config)
        else:
            data, snippets = rating_data(config)
        made = new_members(
            config.model, config.members, seed=config.seed, lora_rank=config.lora_rank, device=config.device
        )
        unfitted = chain([next(made)], made)  # what is wrong with the model shows here
        run.begin(dataclasses.asdict(config))
        members, results, wall_s = fit_members(unfitted, data, config)
        kept = members[0] if config.members == 1 else RewardEnsemble(members)
        write_folder_aside(Path(config.model_dir or run.path / "model"), kept.save)
        figures, bins = pair_report(members, heldout) if config.pairs else rating_report(members, snippets)
        run.write_json(BINS, bins_table(bins))
        draw_bins(bins, run.path / PICTURE)
        summary: dict[str, Any] = {
            **figures,
            "num_train_pairs": sum(result.num_pairs for result in results),
            "validation_loss": float(np.mean([result.best_loss for result in results])),
            "steps": sum(result.steps for result in results),
            "seed": config.seed,
            "interrupted": results[-1].interrupted,
            "wall_s": wall_s,
        }
        run.write_json(SUMMARY, summary)
        return summary


def _refuse_to_bury(folder: Path, config: TrainRewardModelConfig) -> None:
    """Refuse a ``model_dir`` with something in it that the model would replace, but a reward model that is to go."""
    inside = [path for path in (config.run_dir, *config.reads) if path and lies_in(Path(path), folder)]
    if inside:
        raise ValueError(f"{inside[0]} lies in {folder}, which the reward model will fill: choose another --model-dir")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --model-dir takes a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / DESCRIPTION).exists() and not is_ensemble(folder):
        raise ValueError(f"{folder} holds files but no reward model: choose another --model-dir")
    if not config.overwrite:
        raise ValueError(f"{folder} holds a reward model: choose another --model-dir or pass --overwrite")


def rated_splits() -> tuple[list[RatedSnippet], list[RatedSnippet]]:
    """Training and held-out snippets, without the nine that are also a sentence in one of the judge's reviews."""
    judged = judge_sentences()
    train, heldout = split_snippets(load_rated_snippets())
    return (
        [snippet for snippet in train if normalize_text(snippet.text) not in judged],
        [snippet for snippet in heldout if normalize_text(snippet.text) not in judged],
    )


def rating_data(config: TrainRewardModelConfig) -> tuple[Data, list[RatedSnippet]]:
    """Training and validation parts of the movie ratings, and the held-out snippets."""
    train, heldout = rated_splits()
    train, validation = split_snippets(train, heldout_share=0.1, seed=VALIDATION_SEED)
    sources: list[BatchSource] = [RatedGroups(snippets=train, group_size=config.group_size)]
    if config.words:
        taken = {normalize_text(snippet.text) for snippet in (*validation, *heldout)} | judge_sentences()
        words = [word for word in load_rated_words() if normalize_text(word.text) not in taken]
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


def fit_members(
    unfitted: Iterator[tuple[int, RewardModel]], data: Data, config: TrainRewardModelConfig
) -> tuple[list[RewardModel], list[FitResult], float]:
    """Fit and calibrate one member after the other, all on the same texts; after Ctrl-C there are those so far.

    Args:
        unfitted: the members, as `new_members` makes them.
        data: what they learn from.
        config: of the run.

    Returns:
        The members, what `fit` did for each, and the seconds that it took.
    """
    from stable_baselines3.common.logger import configure

    logger = configure(config.run_dir, ["csv", "tensorboard"])
    members: list[RewardModel] = []
    results: list[FitResult] = []
    seconds = 0.0
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn(), TextColumn("{task.fields[losses]}"))
    try:
        with Progress(*columns) as progress:
            for index, (seed, model) in enumerate(unfitted):
                name = "reward model" if config.members == 1 else f"member {index + 1} of {config.members}"
                task = progress.add_task(name, total=None, losses="")
                on_step = _reporter(progress, task, logger, index, sum(result.steps for result in results))
                options = dataclasses.replace(config.training, seed=seed)
                began = time.perf_counter()
                result = fit(model, data.train, data.validation, options, on_step=on_step)
                seconds += time.perf_counter() - began
                model.calibrate(model.encode(data.reference))
                members.append(model)
                results.append(result)
                if result.interrupted:
                    break
    except KeyboardInterrupt:  # between two members
        if not results:
            raise
        results[-1].interrupted = True
    finally:
        logger.close()
    return members, results, seconds


def _reporter(progress: Progress, task: Any, logger: Any, member: int, before: int) -> Callable[..., None]:
    """What `fit` tells its steps to: the bar, and every tenth step progress.csv and TensorBoard.

    Args:
        progress: the bars.
        task: the member's own.
        logger: of the files.
        member: its index.
        before: steps that members before it made, which the files count on from.
    """

    def on_step(step: int, num_steps: int, loss: float, best: float) -> None:
        losses = f"loss {loss:.3f}  best validation loss {best:.3f}"
        progress.update(task, completed=step, total=num_steps, losses=losses)
        if step % 10 == 0 or step == num_steps:
            logger.record("train/step", before + step)
            logger.record("train/member", member)
            logger.record("train/loss", loss)
            if best < math.inf:
                logger.record("validation/best_loss", best)
            logger.dump(before + step)

    return on_step


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; returns the exit code: 0, 2 on bad input, 130 after Ctrl-C."""
    return enter(TrainRewardModelConfig, main, description=__doc__, arguments=arguments)
