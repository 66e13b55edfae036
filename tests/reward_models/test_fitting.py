"""The optimizer loop on a line through points, against the same loop written out."""

import math

import pytest
import torch

from reward_models.fit_options import FitOptions, StepResult, warmup_cosine, warmup_linear
from reward_models.fitting import Fit

OPTIONS = dict(
    num_steps=10, learning_rate=0.1, warmup_share=0.2, final_share=0.0, weight_decay=0.1, betas=(0.9, 0.99),
    max_grad_norm=1.0, eval_every=2, checkpoint_every=3, keep_best=True,
)  # fmt: skip


class Line:
    """y = w x + b through a few points; the held-out losses are given."""

    def __init__(self, heldout=None, poison=None, data=7):
        torch.manual_seed(0)
        self.module = torch.nn.Linear(1, 1)
        self.heldout, self.poison, self.data = iter(heldout or []), poison, data
        self.seen = []

    def batches(self):
        step = 0
        while True:
            step += 1
            yield torch.tensor([[float(step % 3)]])

    def gradient(self, batch):
        self.seen.append(batch.item())
        loss = ((self.module(batch) - 2 * batch) ** 2).mean()
        if self.poison == len(self.seen):
            loss = loss * math.nan
        loss.backward()
        return StepResult(loss.item(), 1)

    def heldout_loss(self):
        return next(self.heldout, None)

    def fingerprint(self):
        return self.data


class Sink:
    def __init__(self):
        self.lines = []

    def write(self, metrics, step):
        self.lines.append((step, metrics))


def run(fit, stop_at=None):
    states = []
    finished = fit.run(
        stopped=lambda: fit.progress.step == stop_at,
        checkpoint=lambda: states.append(fit.progress.step),
        show=lambda: None,
    )
    return finished, states


def weights(learner):
    return [parameter.detach().clone() for parameter in learner.module.parameters()]


def test_the_learning_rate_rises_then_falls_to_its_final_share():
    options = FitOptions(**OPTIONS | {"num_steps": 1000, "warmup_share": 0.02, "final_share": 0.05})
    rates = [warmup_cosine(step, options) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 20, rel=1e-3)
    assert max(rates) == pytest.approx(1.0, abs=2e-3)
    assert rates[-1] == pytest.approx(0.05, abs=1e-3)
    short = FitOptions(**OPTIONS | {"num_steps": 7, "warmup_share": 0.0})
    assert min(warmup_cosine(step, short) for step in range(7)) > 0


def test_the_linear_schedule_rises_and_falls_and_is_never_below_zero():
    options = FitOptions(**OPTIONS | {"num_steps": 100, "warmup_share": 0.1})
    factors = [warmup_linear(step, options) for step in range(121)]
    assert factors[5] == pytest.approx(0.5, abs=2e-3)
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5)
    assert factors[-1] == min(factors) == 0
    assert factors[0] > 0


def test_steps_are_those_of_adamw_with_clipped_gradients_and_decay_on_matrices_alone():
    ours, theirs = Line(), Line()
    assert run(Fit(ours, FitOptions(**OPTIONS), Sink())) == (True, [3, 6, 9])
    weight, bias = theirs.module.weight, theirs.module.bias
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    for step, batch in zip(range(10), theirs.batches(), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * min(1.0, (step + 1) / 2) * 0.5 * (1 + math.cos(math.pi * step / 10))
        theirs.gradient(batch)
        torch.nn.utils.clip_grad_norm_([weight, bias], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(ours), weights(theirs))


def test_the_weights_of_the_best_evaluation_are_kept_and_every_evaluation_is_logged():
    learner, sink = Line(heldout=[5.0, 4.0, 1.0, 2.0, 3.0, 6.0]), Sink()
    fit = Fit(learner, FitOptions(**OPTIONS), sink)
    at_step = {}
    fit.run(
        stopped=lambda: False,
        checkpoint=lambda: None,
        show=lambda: at_step.update({fit.progress.step: weights(learner)}),
    )
    fit.settle()
    assert (fit.progress.first_loss, fit.progress.last_loss, fit.progress.best_loss) == (5.0, 6.0, 1.0)
    assert fit.progress.best_step == 4
    torch.testing.assert_close(weights(learner), at_step[4], rtol=0, atol=0)
    evaluated = {step: line["validation/loss"] for step, line in sink.lines if "validation/loss" in line}
    assert evaluated == {0: 5.0, 2: 4.0, 4: 1.0, 6: 2.0, 8: 3.0, 10: 6.0}


def test_the_last_weights_are_kept_on_demand():
    learner = Line(heldout=[5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    fit = Fit(learner, FitOptions(**OPTIONS | {"keep_best": False}), Sink())
    run(fit)
    last = weights(learner)
    fit.settle()
    torch.testing.assert_close(weights(learner), last, rtol=0, atol=0)
    assert (fit.progress.best_loss, fit.progress.best_step) == (6.0, 10)


def test_a_stopped_fit_goes_on_bit_for_bit():
    whole = Line(heldout=[5.0, 4.0, 1.0, 2.0, 3.0, 6.0])
    fit = Fit(whole, FitOptions(**OPTIONS), Sink())
    run(fit)
    first = Line(heldout=[5.0, 4.0, 1.0])
    stopped = Fit(first, FitOptions(**OPTIONS), Sink())
    assert run(stopped, stop_at=5) == (False, [3, 5])
    second = Line(heldout=[2.0, 3.0, 6.0])
    resumed = Fit(second, FitOptions(**OPTIONS), Sink())
    resumed.load_state_dict(stopped.state_dict())
    assert run(resumed) == (True, [6, 9])
    assert first.seen + second.seen == whole.seen
    torch.testing.assert_close(weights(second), weights(whole), rtol=0, atol=0)
    fit.settle()
    resumed.settle()
    torch.testing.assert_close(weights(second), weights(whole), rtol=0, atol=0)


def test_the_average_is_what_is_evaluated_kept_and_resumed():
    """With decay 0.3 the n-th update keeps min(0.3, (n - 1) / (n + 9)) of the average: 0, 1/11, 2/12, 3/13, ..."""
    options = FitOptions(**OPTIONS | {"average_decay": 0.3, "keep_best": True, "num_steps": 6})
    learner, newest = Line(heldout=[5.0, 4.0, 3.0, 2.0]), []
    fit = Fit(learner, options)
    fit.run(stopped=lambda: False, checkpoint=lambda: None, show=lambda: newest.append(weights(learner)[0]))
    expected = newest[0]
    for count, weight in enumerate(newest[1:], start=2):
        kept = min(0.3, (count - 1) / (count + 9))
        expected = kept * expected + (1 - kept) * weight
    fit.settle()
    torch.testing.assert_close(weights(learner)[0], expected)
    stopped = Fit(Line(heldout=[5.0, 4.0]), options)
    run(stopped, stop_at=3)
    second = Line(heldout=[3.0, 2.0])
    resumed = Fit(second, options)
    resumed.load_state_dict(stopped.state_dict())
    assert run(resumed)[0]
    resumed.settle()
    torch.testing.assert_close(weights(second), weights(learner), rtol=0, atol=0)


def test_training_stops_when_patience_is_used_up():
    fit = Fit(Line(heldout=[5.0, 4.0, 6.0, 7.0, 1.0, 1.0]), FitOptions(**OPTIONS | {"patience": 2}))
    assert run(fit)[0]
    assert (fit.progress.step, fit.progress.best_step, fit.progress.best_loss) == (6, 2, 4.0)


def test_a_state_of_other_data_or_of_another_model_is_refused():
    state = Fit(Line(data=7), FitOptions(**OPTIONS), Sink()).state_dict()
    with pytest.raises(ValueError, match="the files have changed"):
        Fit(Line(data=8), FitOptions(**OPTIONS), Sink()).load_state_dict(state)
    wider = Line()
    wider.module = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match="does not fit"):
        Fit(wider, FitOptions(**OPTIONS), Sink()).load_state_dict(state)


def test_a_loss_that_is_no_number_ends_the_fit_with_the_weights_before_it():
    learner = Line(poison=4)
    fit = Fit(learner, FitOptions(**OPTIONS), Sink())
    before = []
    with pytest.raises(FloatingPointError, match="step 4: expected a finite loss and gradient norm, received nan"):
        fit.run(stopped=lambda: False, checkpoint=lambda: None, show=lambda: before.append(weights(learner)))
    torch.testing.assert_close(weights(learner), before[-1], rtol=0, atol=0)


@pytest.mark.parametrize(("heldout", "step"), [([math.nan], 0), ([5.0, 4.0, math.inf], 4)])
def test_a_heldout_loss_that_is_no_number_is_not_kept_as_the_best(heldout, step):
    fit = Fit(Line(heldout=heldout), FitOptions(**OPTIONS), Sink())
    with pytest.raises(FloatingPointError, match=f"step {step}: expected a finite held-out loss, received (nan|inf)"):
        run(fit)
    assert fit.progress.step == step
    assert fit.progress.best_loss == (None if step == 0 else 4.0)
