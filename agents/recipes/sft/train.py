"""The run of ``textenvs train-language-model``: rows and model, the fit, samples before and after, the summary.

Its settings are in `config`.
"""

from __future__ import annotations

from typing import Any

import torch

from agents.evaluation.samples import EVAL_SEED, write_samples
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.loading import resolved
from agents.lm.memory import PeakMemory
from agents.lm.saving import save_adapter, save_model, save_pretrained
from agents.lm.sharding import gathered
from agents.recipes.sft.build import Rows, build_policy, build_rows
from agents.recipes.sft.config import TrainLanguageModelConfig
from agents.recipes.sft.data import Examples, read_examples
from agents.recipes.sft.from_scratch import FromScratch, encode_reviews, loss_per_token, new_model, train_tokenizer
from agents.recipes.sft.loss import BatchLimits, FineTuning
from agents.recipes.sft.rows import TokenRow
from agents.reports.page import write_report
from agents.runs.devices import prepare_device
from agents.runs.distributed import ALONE, Processes
from agents.runs.fit_run import fit_in, follow
from agents.runs.lifecycle import TrainingRun, training_run
from reward_models.data.movie_reviews import SHA256, movie_review_splits
from reward_models.fitting import Fit, perplexity_of
from textenvs.tokens.row_files import column_names, statement

MODEL, ADAPTER, SAMPLES = "model", "adapter", "samples.json"
SHOWN = 3
"""Samples that are printed; all are in the file."""


def main(config: TrainLanguageModelConfig) -> dict[str, Any]:
    """Train; returns the content of ``summary.json``, or nothing in processes other than the main one.

    Raises:
        RunDirError: if the run directory cannot be used.
        ValueError, CheckpointError, FloatingPointError: with a message that says what to do.
        Interrupted: after Ctrl-C or SIGTERM, once checkpoint and model are written.
    """
    config = config.settled()
    dtype = resolved(config.dtype, config.device)
    processes = Processes.launched(config.device, dtype, sharded=config.shard != "none")
    if config.data is None and processes.count > 1:
        raise ValueError(f"data: expected a file, since movie reviews are for one process, received {processes.count}")
    prepare_device(config.device, config.dtype)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    reads = (config.model, config.data, config.heldout_data)
    with processes.together():
        if not processes.is_main:
            _follow(config, processes)
            return {}
        settings = config.identity()
        with training_run(
            config, script="train_language_model", settings=settings, reads=reads, report=write_report
        ) as run:
            return movie_reviews(config, run) if config.data is None else fine_tune(config, run, processes)


def movie_reviews(config: TrainLanguageModelConfig, run: TrainingRun) -> dict[str, Any]:
    """Train a new model on movie-review sentences; returns the content of ``summary.json``; ValueError if the data is
    not the data this was measured with."""
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
    save_pretrained(model, tokenizer, run.path / MODEL)
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
    return run.finish(summary, finished=finished)


def fine_tune(config: TrainLanguageModelConfig, run: TrainingRun, processes: Processes = ALONE) -> dict[str, Any]:
    """Fine-tune in the main process; returns the content of ``summary.json``."""
    peak = PeakMemory(config.device)
    examples, tokenizer, rows, learner = _learner(config, processes.broadcast(run.began), processes)
    policy = learner.module
    print(statement(f"{examples.kind} of {column_names(examples.kind)}", len(rows.train), len(rows.heldout)))
    book = SampleBook(config, tokenizer, policy, rows.heldout)
    before = book.write()
    fit = _fit(config, learner)
    finished = fit_in(run, fit, processes)
    peak_bytes, weights = peak.bytes(), gathered(policy.state_dict(), processes, "model.")
    save_adapter(policy, run.path / ADAPTER, weights)  # first: merging takes the memory of one more model
    save_model(policy, tokenizer, run.path / MODEL, weights)
    after = book.write()
    processes.all_gather(None)  # until here they took part in passes
    samples = book.compare(before, after)
    run.folder.write_json(SAMPLES, {"samples": samples})
    for sample in samples[:SHOWN]:
        print(f"{sample['prompt']!r}\n  before: {sample['before']!r}\n  after:  {sample['after']!r}")
    for step, endings in ((0, before), (fit.progress.best_step, after)):
        run.sink.write_samples([row.prompt for row in book.rows], endings, step)
    summary = {
        "kind": examples.kind,
        "seed": config.seed,
        **figures(fit),
        **rows.counts,
        "trained_parameters": sum(parameter.numel() for parameter in fit.parameters),
        "peak_memory_bytes": peak_bytes,
    }
    return run.finish(summary, finished=finished)


def _follow(config: TrainLanguageModelConfig, processes: Processes) -> None:
    """Run in every process but the main one: take part in every step, and write nothing."""
    *_, learner = _learner(config, processes.broadcast(None), processes)
    follow(_fit(config, learner), processes)
    gathered(learner.module.state_dict(), processes, "model.")
    processes.all_gather(None)


def _learner(
    config: TrainLanguageModelConfig, began: str, processes: Processes
) -> tuple[Examples, Any, Rows, FineTuning]:
    """The data, the tokenizer, the rows, and what learns them."""
    assert config.data is not None
    examples = read_examples(config.data)
    tokenizer, policy = build_policy(config, examples, began, processes)
    rows = build_rows(config, examples, tokenizer, policy)
    limits = BatchLimits(
        rows=config.batch_size,
        tokens=config.batch_tokens,
        micro_rows=config.microbatch_size,
        micro_positions=config.microbatch_tokens,
    )
    learner = FineTuning(policy, rows.train, rows.heldout, limits=limits, seed=config.seed, processes=processes)
    return examples, tokenizer, rows, learner


def _fit(config: TrainLanguageModelConfig, learner: FineTuning) -> Fit:
    learner.processes.all_gather(None)  # whose parts are at rest
    return Fit(learner, config.fit_options(num_steps(config, learner)))


def num_steps(config: TrainLanguageModelConfig, learner: FineTuning) -> int:
    """Optimizer steps of the run: so many epochs, or so many tokens."""
    if config.epochs is not None:
        return learner.steps_in(config.epochs)
    assert config.train_tokens is not None
    return learner.steps_in(config.train_tokens / sum(len(row.tokens) for row in learner.train))


def figures(fit: Fit) -> dict[str, Any]:
    """What the summary says of a fit; perplexities are per learned token of the held-out rows, None without any.

    ``perplexity_after`` is of the weights that are kept, ``perplexity_last`` of the last ones.
    """
    progress = fit.progress
    losses = {"before": progress.first_loss, "after": progress.best_loss, "last": progress.last_loss}
    return {
        **{f"perplexity_{when}": None if loss is None else perplexity_of(loss) for when, loss in losses.items()},
        **{f"heldout_loss_{when}": loss for when, loss in losses.items()},
        "steps": progress.step,
        "kept_step": progress.best_step,
        "tokens": progress.count,
        "tokens_per_s": progress.count / max(progress.step_seconds, 1e-9),
        "wall_s": progress.seconds,
    }


class SampleBook:
    """What a policy, as it is at the time, writes on a few held-out prompts, with the same luck each time.

    The prompts are openings of ``heldout``; a row that fills the model's positions is passed over.
    """

    def __init__(
        self, config: TrainLanguageModelConfig, tokenizer: Any, policy: CausalLMPolicy, heldout: list[TokenRow]
    ) -> None:
        self.tokenizer, self.policy = tokenizer, policy
        limit = policy.max_positions
        fitting = [row for row in heldout if limit is None or row.opening < limit]
        self.rows = fitting[: config.num_samples]
        room = [] if limit is None else [limit - row.opening for row in self.rows]
        self.budget = min([config.sample_tokens, *room])

    def write(self) -> list[str]:
        """A completion for every prompt."""
        if not self.rows:
            return []
        prompts: list[Any] = [row.tokens[: row.opening].tolist() for row in self.rows]
        samples = write_samples(self.policy, self.tokenizer, prompts, max_new_tokens=self.budget, seed=EVAL_SEED)
        return samples.endings

    def compare(self, before: list[str], after: list[str]) -> list[dict[str, str]]:
        """Prompt, what the data says, and what was written before and after."""
        targets = [self.tokenizer.decode(row.tokens[row.opening :], skip_special_tokens=True) for row in self.rows]
        return [
            {"prompt": row.prompt, "target": target, "before": first, "after": second}
            for row, target, first, second in zip(self.rows, targets, before, after, strict=True)
        ]
