"""The run of ``textenvs train-reward-model``; its settings are in `agents.recipes.commands.reward_model`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from agents.lm.sharding import gathered
from agents.recipes.commands.reward_model import TrainRewardModelConfig
from agents.recipes.reward_processes import SharedRewards, build_members
from agents.reports.page import write_report
from agents.runs import checkpoint
from agents.runs.devices import check_device
from agents.runs.distributed import ALONE, Processes
from agents.runs.fit_run import drive, follow, restore
from agents.runs.lifecycle import TrainingRun, training_run
from agents.runs.logging import MetricSink
from agents.runs.run_dir import lies_in, write_folder_aside
from reward_models.data.comparisons import (
    BatchSource,
    ComparisonBatch,
    Mixture,
    PairBatches,
    RatedGroups,
    group_comparisons,
    pair_comparisons,
    pair_keys,
    split_pairs,
    split_snippets,
)
from reward_models.data.movie_ratings import RatedSnippet, load_rated_snippets, load_rated_words, normalize_text
from reward_models.data.movie_reviews import judge_sentences
from reward_models.data.pairs import PreferencePair, read_pairs
from reward_models.ensemble import RewardEnsemble, is_ensemble
from reward_models.evaluation.report import BINS, PICTURE, bins_table, draw_bins, pair_report, rating_report
from reward_models.files import DESCRIPTION
from reward_models.fit_options import Progress
from reward_models.fitting import Fit, trained_state
from reward_models.model import RewardModel
from reward_models.training import RewardLearner, num_steps, restore_dropout, set_dropout
from textenvs import assets
from textenvs.tokens.row_files import left_over, statement

LANGUAGE_MODEL = str(assets.language_model_dir())
VALIDATION_SEED = 1
VALIDATION_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run learns from: training batches, validation batches, and texts for calibration."""

    train: BatchSource
    validation: Sequence[ComparisonBatch]
    reference: Sequence[str]
    num_too_long: int = 0
    """Pairs that were cut or skipped."""


def main(config: TrainRewardModelConfig) -> dict[str, Any]:
    """Train; returns the content of ``summary.json``, or nothing in processes other than the main one.

    Raises:
        RunDirError: if the run directory cannot be used.
        ValueError: if model or pairs cannot be used; the message says what to do.
        TrainingDiverged: if the loss is no longer a number.
        Interrupted: after Ctrl-C or SIGTERM, once checkpoint and model are written.
    """
    processes = Processes.launched(config.device, config.training.dtype, sharded=config.shard != "none")
    check_device(config.device)
    if processes.count > 1:
        config.check_shared()
    with processes.together():
        if processes.is_main:
            return _lead(config, processes)
        _follow(config, processes)
        return {}


def _lead(config: TrainRewardModelConfig, processes: Processes) -> dict[str, Any]:
    """Run in the main process, or the only one."""
    if config.model_dir:
        _refuse_to_bury(Path(config.model_dir), config)
    settings, reads = config.identity(), config.reads
    with training_run(config, script="train_reward_model", settings=settings, reads=reads, report=write_report) as run:
        unfitted, data, heldout = _parts(config, processes)
        members, ends, finished = fit_members(unfitted, data, config, run, processes)
        whole = gathered(trained_state(members[0]), processes)
        save = partial(members[0].save, whole=whole) if config.members == 1 else RewardEnsemble(members).save
        write_folder_aside(Path(config.model_dir or run.path / "model"), save)
        if finished:
            metrics, bins = pair_report(members, heldout) if config.pairs else rating_report(members, heldout)
        processes.all_gather(None)  # until here they took part in passes
        if not finished:
            return run.finish({}, finished=False)
        run.folder.write_json(BINS, bins_table(bins))
        draw_bins(bins, run.path / PICTURE)
        summary: dict[str, Any] = {
            **metrics,
            "num_too_long_pairs": data.num_too_long,
            "num_train_pairs": sum(end.count for end in ends),
            "validation_loss": float(np.mean([end.best_loss for end in ends])),
            "steps": sum(end.step for end in ends),
            "seed": config.seed,
            "wall_s": sum(end.seconds for end in ends),
        }
        return run.finish(summary, finished=True)


def _follow(config: TrainRewardModelConfig, processes: Processes) -> None:
    """Run in every process but the main one: take part in every step, and write nothing."""
    unfitted, data, _ = _parts(config, processes)
    _, model = next(unfitted)
    follow(_new_fit(model, data, config, processes, seed=config.seed), processes, save_end=True)
    gathered(trained_state(model), processes)
    processes.all_gather(None)


def _parts(
    config: TrainRewardModelConfig, processes: Processes
) -> tuple[Iterator[tuple[int, RewardModel]], Data, list[Any]]:
    """Unfitted members, what they learn from, and pairs or snippets for the figures."""
    members = build_members(config, config.model or LANGUAGE_MODEL, processes)
    first = next(members)  # what is wrong with the model shows here
    data, heldout = pair_data(config, first[1]) if config.pairs else rating_data(config)
    return chain([first], members), data, list(heldout)


def _new_fit(
    model: RewardModel, data: Data, config: TrainRewardModelConfig, processes: Processes, *, seed: int, sink: Any = None
) -> Fit:
    options, workers = replace(config.training, seed=seed), SharedRewards(processes) if processes.count > 1 else None
    learner = RewardLearner(model, data.train, data.validation, options, workers)
    return learner.new_fit(sink, checkpoint_every=config.checkpoint_every)


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
    if not (config.overwrite or config.resume):  # a run that was stopped left its best so far there
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


def readable_pairs(source: str, model: RewardModel, config: TrainRewardModelConfig) -> tuple[list[PreferencePair], int]:
    """The pairs of a file or data set, without those to skip, and how many are longer than ``model`` can read.

    Raises:
        ValueError: there are longer ones and they are to be refused, or all are.
    """
    pairs = read_pairs(source)
    texts = model.encode([pair.prompt + answer for pair in pairs for answer in (pair.chosen, pair.rejected)])
    lengths = np.array([len(row) for row in texts]).reshape(-1, 2).max(axis=1)
    fits = lengths <= model.max_length
    number = int((~fits).sum())
    if number and (config.too_long == "refuse" or not fits.any()):
        raise ValueError(
            f"{source}: {number} of {len(pairs)} pairs have a text of more tokens than the {model.max_length} that the "
            f"model reads (the longest {lengths.max()}): "
            "cut or skip them (--too-long), or take a model with more positions"
        )
    return [pair for pair, fit in zip(pairs, fits, strict=True) if fit or config.too_long == "cut"], number


def pair_data(config: TrainRewardModelConfig, model: RewardModel) -> tuple[Data, list[PreferencePair]]:
    """Training and validation parts of a user's pairs for ``model``, and the held-out pairs."""
    train, num_too_long = readable_pairs(config.pairs, model, config)
    if config.heldout_pairs:
        heldout, others = readable_pairs(config.heldout_pairs, model, config)
        num_too_long += others
        taken = {key for pair in heldout for key in pair_keys(pair)}
        train = [train[i] for i in left_over([set(pair_keys(pair)) for pair in train], taken, config.heldout_pairs)]
    else:
        train, heldout = split_pairs(train)
    print(statement("pairs of prompt, chosen and rejected", len(train), len(heldout)))
    train, validation = split_pairs(train, seed=VALIDATION_SEED)
    size = config.group_size
    batches = [pair_comparisons(validation[i : i + size]) for i in range(0, len(validation), size)]
    reference = list(dict.fromkeys(text for batch in batches for text in batch.texts))
    source = PairBatches(pairs=train, batch_size=size)
    return Data(train=source, validation=batches, reference=reference, num_too_long=num_too_long), heldout


@dataclass(frozen=True)
class MemberSink:
    """Writes the steps of an ensemble's member after those of the members before it."""

    sink: MetricSink
    member: int
    before: int

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Write one line."""
        self.sink.write({"train/member": float(self.member), **metrics}, self.before + step)


def fit_members(
    unfitted: Iterator[tuple[int, RewardModel]],
    data: Data,
    config: TrainRewardModelConfig,
    run: TrainingRun,
    processes: Processes = ALONE,
) -> tuple[list[RewardModel], list[Progress], bool]:
    """Fit and calibrate one member after the other, all on the same texts; a signal ends it after the step in progress.

    A resumed run restores the members that were fitted, and the one that was not, from their checkpoints. Returns the
    members so far, with their best weights; where each fit ended; and whether all were fitted.
    """
    # Each member's state stays where it was saved once the member is fitted.
    first = run.checkpoint
    paths = [first, *(first.with_stem(f"{first.stem}_{member}") for member in range(1, config.members))]
    states = [checkpoint.read(path) if config.resume and path.exists() else None for path in paths]
    with run.restoring():
        steps_before = sum(state["progress"]["step"] for state in states if state is not None)
    members: list[RewardModel] = []
    ends: list[Progress] = []
    finished = True
    total = num_steps(data.train, config.training)
    with run.training(config.members * total, "optimizer steps", done=steps_before) as bar:
        sink = run.begin(steps_before)
        for index, (seed, model) in enumerate(unfitted):
            label = "reward model" if config.members == 1 else f"member {index + 1} of {config.members}"
            before = sum(end.step for end in ends)
            fit = _new_fit(model, data, config, processes, seed=seed, sink=MemberSink(sink, index, before))
            with run.restoring(paths[index]):
                restore(fit, states[index], paths[index], processes)
            usual_dropout = set_dropout(model, config.training.dropout, config.training.attention_dropout)
            try:
                finished = drive(fit, run, bar, paths[index], processes, done=index * total, label=label)
                checkpoint.save(paths[index], fit.state_dict(), processes)
                fit.settle()
            finally:
                restore_dropout(usual_dropout)
                model.eval()
            model.calibrate(model.encode(data.reference))
            members.append(model)
            ends.append(fit.progress)
            finished = finished and len(members) == config.members
            if run.stop.is_set() and not finished:
                break
    return members, ends, finished
