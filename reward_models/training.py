"""Training of reward models: Bradley–Terry on comparisons; the optimizer loop is in `reward_models.fitting`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from reward_models.data.comparisons import BatchSource, ComparisonBatch
from reward_models.fit_options import FitOptions, MetricSink, StepResult, warmup_linear
from reward_models.fitting import Fit
from reward_models.losses import bradley_terry_loss
from reward_models.model import RewardModel
from reward_models.options import TrainingOptions

DROPOUT_NAMES = ("dropout", "pdrop")
"""Every dropout rate has one of these in its name; ``layerdrop`` is no dropout rate."""
DropoutRate: TypeAlias = "tuple[Any, str, float, bool]"
"""A module or configuration, the attribute that holds the rate, the rate, in [0, 1), and if it is attention's."""


@dataclass(kw_only=True)
class FitResult:
    """Summary of a `fit`."""

    steps: int = 0  # optimizer steps
    num_pairs: int = 0  # pairs of texts compared, repeats included
    best_loss: float = math.inf  # held-out loss, nats, of the weights that were kept
    history: list[tuple[int, float]] = field(default_factory=list)  # (step, held-out loss) of each evaluation
    interrupted: bool = False  # whether Ctrl-C ended it


class Workers(Protocol):
    """Who computes the rewards of a batch's texts: this process, or several that share them."""

    def rewards(self, model: RewardModel, rows: Sequence[list[int]], chunk_size: int) -> Tensor:
        """Of all ``rows`` ``[N]``, in their order; carries the gradient of those that are this process's."""

    def add_gradients(self, model: RewardModel) -> None:
        """Make the model's gradients the sum of all processes'."""


class OneWorker:
    """This process alone."""

    def rewards(self, model: RewardModel, rows: Sequence[list[int]], chunk_size: int) -> Tensor:
        """Encode each row once, in chunks of like length."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        chunks = [order[start : start + chunk_size] for start in range(0, len(order), chunk_size)]
        rewards = torch.cat([model.raw(*model.pad([rows[i] for i in chunk])) for chunk in chunks])
        return rewards[torch.argsort(torch.tensor(order, device=rewards.device))]

    def add_gradients(self, model: RewardModel) -> None:
        """There is nothing to add."""


class RewardLearner:
    """A reward model and its comparisons, as `reward_models.fitting.Fit` trains it; arguments and errors as `fit`."""

    def __init__(
        self,
        model: RewardModel,
        train: BatchSource,
        heldout: Sequence[ComparisonBatch],
        options: TrainingOptions,
        workers: Workers | None = None,
    ) -> None:
        if not len(heldout):
            raise ValueError("heldout: expected at least one batch, whose loss chooses the weights; received 0")
        self.module, self.train, self.heldout, self.options = model, train, heldout, options
        self.workers = workers or OneWorker()
        model.mean.zero_()
        model.std.fill_(1.0)
        model.autocast = torch.bfloat16 if options.dtype == "bfloat16" else None
        self._rows = _RowCache(model)

    def new_fit(self, sink: MetricSink | None = None, *, checkpoint_every: int = 1000) -> Fit:
        """The fit of this learner; seeds torch's global generator, which dropout draws from."""
        options = self.options
        torch.manual_seed(options.seed)
        fit_options = FitOptions(
            num_steps=num_steps(self.train, options), learning_rate=options.learning_rate,
            warmup_share=options.warmup_share, final_share=0.0, weight_decay=options.weight_decay, betas=(0.9, 0.98),
            max_grad_norm=options.max_grad_norm, eval_every=options.eval_every, checkpoint_every=checkpoint_every,
            keep_best=True, average_decay=options.average_decay, patience=options.patience, evaluate_start=False,
            unit="pairs",
        )  # fmt: skip
        return Fit(self, fit_options, sink, groups=parameter_groups(self.module, options), schedule=warmup_linear)

    def batches(self) -> Iterator[tuple[ComparisonBatch, list[list[int]]]]:
        """Endless comparisons with the disturbed token rows of their texts; one generator draws noise and order."""
        rng = np.random.default_rng(self.options.seed)
        while True:
            for batch in self.train.epoch(rng):
                yield batch, [disturb(row, self.module, self.options, rng) for row in self._rows(batch.texts)]

    def gradient(self, batch: tuple[ComparisonBatch, list[list[int]]]) -> StepResult:
        """Add the gradient of a batch's Bradley–Terry loss."""
        comparisons, rows = batch
        self.module.train(self.options.drops)
        options = self.options
        loss = batch_loss(self.module, rows, comparisons, options.chunk_size, options.centering_coef, self.workers)
        torch.autograd.backward(loss)
        self.workers.add_gradients(self.module)
        return StepResult(loss.item(), comparisons.num_pairs)

    def heldout_loss(self) -> float:
        """Mean loss, nats, of the held-out batches."""
        return heldout_loss(self.module, self.heldout, self._rows, self.workers)

    def fingerprint(self) -> int:
        """A checksum of the held-out texts and of the first training batch."""
        batches = (next(iter(self.train.epoch(np.random.default_rng(self.options.seed)))), *self.heldout)
        return zlib.crc32("\0".join(text for batch in batches for text in batch.texts).encode())


def num_steps(train: BatchSource, options: TrainingOptions) -> int:
    """Optimizer steps of a fit, if patience lasts."""
    return max(1, round(options.epochs * len(train)))


def fit(
    model: RewardModel,
    train: BatchSource,
    heldout: Sequence[ComparisonBatch],
    options: TrainingOptions,
    *,
    on_step: Callable[[int, int, float, float], None] | None = None,
) -> FitResult:
    """Fit the model in place; it ends in evaluation mode with the averaged weights of the least held-out loss.

    Its calibration is reset, as its rewards change. ``heldout``, at least one batch, is for early stopping. Ctrl-C ends
    training early and keeps the best weights so far. ``on_step(step, num_steps, training loss, best held-out loss)`` is
    called after every step. Torch's global generator is left as it was.

    Raises:
        ValueError: ``heldout`` is empty.
        TrainingDiverged: a loss is NaN or infinite; the model then has the best weights so far.
    """
    learner, interrupted = RewardLearner(model, train, heldout, options), False

    def best() -> float:
        return math.inf if progress.best_loss is None else progress.best_loss

    def show() -> None:
        if on_step is not None:
            on_step(progress.step, fitting.options.num_steps, fitting.loss, best())

    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        fitting = learner.new_fit()
        progress = fitting.progress
        old_dropout = set_dropout(model, options.dropout, options.attention_dropout)
        try:
            fitting.run(stopped=lambda: False, checkpoint=lambda: None, show=show)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            fitting.put_best()
            restore_dropout(old_dropout)
            model.eval()
    return FitResult(
        steps=progress.step,
        num_pairs=progress.count,
        best_loss=best(),
        history=fitting.history,
        interrupted=interrupted,
    )


def batch_loss(
    model: RewardModel,
    rows: Sequence[list[int]],
    batch: ComparisonBatch,
    chunk_size: int,
    centering_coef: float = 0.0,
    workers: Workers | None = None,
) -> Tensor:
    """The Bradley–Terry loss (nats) of one batch, each of its texts encoded once, in chunks of like length."""
    rewards = (workers or OneWorker()).rewards(model, rows, chunk_size)
    chosen, rejected, weights, margins = (
        torch.as_tensor(x, device=rewards.device) for x in (batch.chosen, batch.rejected, batch.weights, batch.margins)
    )
    return bradley_terry_loss(
        rewards[chosen], rewards[rejected], margin=margins, weights=weights, centering_coef=centering_coef
    )


@torch.no_grad()
def heldout_loss(
    model: RewardModel,
    batches: Iterable[ComparisonBatch],
    rows: _RowCache | None = None,
    workers: Workers | None = None,
) -> float:
    """Mean loss (nats) over batches, without dropout, noise or centering."""
    rows = rows or _RowCache(model)
    model.eval()
    losses = [batch_loss(model, rows(batch.texts), batch, 64, workers=workers).item() for batch in batches]
    return float(np.mean(losses))


def disturb(row: list[int], model: RewardModel, options: TrainingOptions, rng: np.random.Generator) -> list[int]:
    """A copy of a row with some tokens replaced by random ones, sometimes cut at a random place."""
    if len(row) > 4 and rng.random() < options.truncation_share:
        row = row[: rng.integers(len(row) // 3 + 1, len(row))]
    if options.token_noise and len(row) > 3:
        tokens = np.array(row)
        hit = rng.random(len(row)) < options.token_noise * rng.random() * 2
        hit[[0, -1]] = False
        tokens[hit] = rng.integers(len(model.tokenizer), size=int(hit.sum()))
        row = tokens.tolist()
    return row


def parameter_groups(model: RewardModel, options: TrainingOptions) -> list[dict[str, Any]]:
    """AdamW's groups: learning rates fall block by block from the head to the embeddings; only matrices decay."""
    blocks = next((m for m in model.backbone.modules() if isinstance(m, nn.ModuleList)), nn.ModuleList())
    depth = {id(p): i for i, block in enumerate(blocks) for p in block.parameters()}
    above = {id(p) for p in model.head.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        rate = options.learning_rate
        if id(parameter) in above:
            rate *= options.head_lr_multiplier
        elif id(parameter) in depth:
            rate *= options.layer_decay ** (len(blocks) - 1 - depth[id(parameter)])
        elif parameter.ndim > 1:  # not the norm after the last block
            rate *= options.layer_decay ** len(blocks)
        decay = options.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


class _RowCache:
    """Token rows of texts, each tokenized once."""

    def __init__(self, model: RewardModel) -> None:
        self.model = model
        self.rows: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        new = [text for text in texts if text not in self.rows]
        self.rows.update(zip(new, self.model.encode(new), strict=True))
        return [self.rows[text] for text in texts]


def dropout_rates(model: nn.Module) -> list[DropoutRate]:
    """Every current dropout rate of a model's layers and configurations.

    A rate is in a dropout layer (GPT-2), in a float of an attention or decoder layer that calls the function (Llama's
    ``attention_dropout``, OPT's ``dropout``), or in a configuration that a layer reads at each call (GPT-Neo, Falcon).
    """
    found: list[DropoutRate] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            above, _, name = path.rpartition(".")
            found.append((module, "p", module.p, _is_attentions(name, model.get_submodule(above))))
    configs = {id(config): config for module in model.modules() if (config := vars(module).get("config")) is not None}
    for place in (*model.modules(), *configs.values()):
        for name, value in vars(place).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and any(part in name for part in DROPOUT_NAMES):
                found.append((place, name, value, _is_attentions(name, place)))
    return found


def _is_attentions(name: str, place: object) -> bool:
    """Whether a rate of that ``name`` in ``place`` is of attention weights: its name says so, or has no other word."""
    return "att" in name or (name == "dropout" and "Attention" in type(place).__name__)


def set_dropout(model: nn.Module, rate: float, attention: float | None = None) -> list[DropoutRate]:
    """Set every dropout rate of ``model``, to ``attention`` those of attention weights unless it is None; returns the
    old ones for `restore_dropout`."""
    old = dropout_rates(model)
    for place, name, _, is_attentions in old:
        setattr(place, name, attention if is_attentions and attention is not None else rate)
    return old


def restore_dropout(old: list[DropoutRate]) -> None:
    """Undo `set_dropout`."""
    for place, name, rate, _ in old:
        setattr(place, name, rate)
