import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from reward_models.data.comparisons import PairBatches, RatedGroups, group_comparisons, pair_comparisons
from reward_models.data.movie_ratings import RatedSnippet
from reward_models.data.pairs import PreferencePair
from reward_models.fitting import TrainingDiverged
from reward_models.losses import bradley_terry_loss
from reward_models.training import (
    RewardLearner,
    TrainingOptions,
    batch_loss,
    disturb,
    fit,
    heldout_loss,
    parameter_groups,
    restore_dropout,
    set_dropout,
)

FILLERS = list(itertools.product(["the", "is", "was", "a"], ["film", "plot", "actor"]))
PAIRS = [
    PreferencePair(prompt=f"{x} {y}", chosen=" is good" if i % 2 else " was fine", rejected=" is bad")
    for i, (x, y) in enumerate(FILLERS)
]
QUICK = TrainingOptions(
    epochs=20, learning_rate=3e-3, dropout=0.1, token_noise=0.0, truncation_share=0.0, average_decay=0.5, eval_every=10
)


def test_pairs_are_learned_and_carry_over_to_held_out_prompts(model):
    heldout = [pair_comparisons([PreferencePair(prompt="b c", chosen=" is good", rejected=" is bad")])]
    before = heldout_loss(model, heldout)
    result = fit(model, PairBatches(pairs=PAIRS, batch_size=6), heldout, QUICK)
    assert result.best_loss < min(0.2, before)
    assert heldout_loss(model, heldout) == pytest.approx(result.best_loss, abs=1e-5)
    assert result.num_pairs == 6 * result.steps
    good, bad = model(["d d", "d d"], [" is good", " is bad"])
    assert good > bad
    assert not model.training


def test_ratings_are_learned_in_the_same_loop(gpt2):
    words = {"good": 3, "fine": 1, "dull": -1, "bad": -3}
    snippets = [
        RatedSnippet(text=f"{x} {y} is {word}", ratings=(rating, rating + 1, rating - 1))
        for x, y in FILLERS
        for word, rating in words.items()
    ]
    fit(gpt2, RatedGroups(snippets=snippets, group_size=16), [group_comparisons(snippets[::5])], QUICK)
    scores = gpt2([""] * 4, [f"the film is {word}" for word in words])
    assert (np.diff(scores) < 0).all()


def test_bfloat16_products_learn_the_same_with_weights_and_rewards_in_float32(model):
    heldout = [pair_comparisons([PreferencePair(prompt="b c", chosen=" is good", rejected=" is bad")])]
    result = fit(model, PairBatches(pairs=PAIRS, batch_size=6), heldout, dataclasses.replace(QUICK, dtype="bfloat16"))
    assert result.best_loss < 0.3
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    ids = torch.arange(1, 7)[None]
    halved = model.raw(ids, torch.ones_like(ids))
    assert halved.dtype == torch.float32
    model.autocast = None
    exact = model.raw(ids, torch.ones_like(ids))
    assert halved != exact
    torch.testing.assert_close(halved, exact, rtol=0.05, atol=0.05)


def test_training_stops_early_and_keeps_the_best_weights(gpt2):
    wrong = [pair_comparisons([PreferencePair(prompt="a", chosen=" is bad", rejected=" is good")])]
    options = dataclasses.replace(QUICK, eval_every=1, patience=3, epochs=50)
    result = fit(gpt2, PairBatches(pairs=PAIRS, batch_size=6), wrong, options)
    assert result.steps < 100
    losses = [loss for _, loss in result.history]
    assert len(losses) == losses.index(min(losses)) + 1 + 3
    assert heldout_loss(gpt2, wrong) == pytest.approx(min(losses), abs=1e-6)


def test_the_same_seed_gives_the_same_weights(gpt2):
    state = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    ends = []
    for _ in range(2):
        gpt2.load_state_dict(state)
        fit(gpt2, PairBatches(pairs=PAIRS, batch_size=6), [pair_comparisons(PAIRS[:2])], TrainingOptions(epochs=3))
        ends.append(gpt2.head.weight.detach().clone())
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], state["head.weight"])


def test_torchs_global_generator_stays_as_it_was(gpt2):
    """It was seeded alike by every fit, so the heads of models that were made one after the other were the same."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit(
        gpt2,
        PairBatches(pairs=PAIRS, batch_size=6),
        [pair_comparisons(PAIRS[:2])],
        dataclasses.replace(QUICK, epochs=1),
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_ctrl_c_keeps_what_was_learned(gpt2):
    def interrupt(step, *_):
        if step == 25:
            raise KeyboardInterrupt

    heldout = [pair_comparisons(PAIRS[:4])]
    result = fit(gpt2, PairBatches(pairs=PAIRS, batch_size=6), heldout, QUICK, on_step=interrupt)
    assert result.interrupted
    assert result.steps == 25
    assert heldout_loss(gpt2, heldout) == pytest.approx(min(loss for _, loss in result.history), abs=1e-5)


def test_a_loss_that_is_no_number_is_refused_and_leaves_finite_weights(gpt2):
    gpt2.head.weight.data.fill_(math.inf)
    before = gpt2.backbone.wte.weight.clone()
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        fit(gpt2, PairBatches(pairs=PAIRS, batch_size=6), [pair_comparisons(PAIRS[:2])], QUICK)
    assert torch.equal(gpt2.backbone.wte.weight, before)


def test_without_anything_held_out_fit_refuses_and_leaves_the_model_as_it_was(gpt2):
    before = gpt2.head.weight.clone()
    gpt2.mean.fill_(0.5)
    with pytest.raises(ValueError, match="heldout: expected at least one batch"):
        fit(gpt2, PairBatches(pairs=PAIRS, batch_size=6), [], QUICK)
    assert torch.equal(gpt2.head.weight, before)
    assert gpt2.mean == 0.5


def test_a_heldout_loss_that_is_no_number_ends_training_with_the_best_weights_so_far(gpt2):
    heldout = [pair_comparisons(PAIRS[:4])]
    losses = []

    def spoil(step, num_steps, loss, best):
        losses.append(best)
        if step == 25:
            heldout[0].margins[0] = math.nan

    with pytest.raises(TrainingDiverged, match="step 30: expected a finite held-out loss, received nan"):
        fit(gpt2, PairBatches(pairs=PAIRS, batch_size=6), heldout, QUICK, on_step=spoil)
    heldout[0].margins[0] = 0.0
    assert heldout_loss(gpt2, heldout) == pytest.approx(losses[-1], abs=1e-5)
    assert not gpt2.training


def test_chunks_change_neither_loss_nor_gradient(gpt2):
    gpt2.eval()
    batch = pair_comparisons(PAIRS[:5])
    rows = gpt2.encode(batch.texts)
    outcomes = []
    for chunk_size in (1, 3, 100):
        gpt2.zero_grad()
        loss = batch_loss(gpt2, rows, batch, chunk_size)
        loss.backward()
        outcomes.append((loss.detach(), gpt2.head.weight.grad.clone()))
    scores = torch.tensor(gpt2.score_rows(rows))
    expected = bradley_terry_loss(scores[batch.chosen], scores[batch.rejected])
    for loss, gradient in outcomes:
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient, outcomes[0][1])


def test_dropout_rates_are_given_back(gpt2):
    fit(gpt2, PairBatches(pairs=PAIRS[:2], batch_size=2), [pair_comparisons(PAIRS[:2])], TrainingOptions(epochs=1))
    assert gpt2.backbone.drop.p == 0.3


def test_a_cut_text_loses_its_end_and_noise_spares_both_ends(gpt2, rng):
    row = [0, *range(2, 12), 0]
    cut = TrainingOptions(truncation_share=1.0, token_noise=0.0)
    for _ in range(50):
        short = disturb(row, gpt2, cut, rng)
        assert 1 < len(short) < len(row)
        assert short == row[: len(short)]
    noisy = TrainingOptions(truncation_share=0.0, token_noise=0.5)
    rows = np.array([disturb(row, gpt2, noisy, rng) for _ in range(50)])
    assert (rows[:, [0, -1]] == 0).all()
    assert (rows != row).any()
    assert row == [0, *range(2, 12), 0]


def test_a_stopped_fit_of_a_reward_model_goes_on_bit_for_bit(gpt2):
    """With noise, cut texts, dropout and an average: everything that a step draws from is restored."""
    options = TrainingOptions(epochs=6, dropout=0.2, token_noise=0.3, truncation_share=0.5, eval_every=4)
    start = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}

    def new_fit():
        gpt2.load_state_dict(start)
        return RewardLearner(
            gpt2, PairBatches(pairs=PAIRS, batch_size=3), [pair_comparisons(PAIRS[:4])], options
        ).new_fit()

    def run(fit, stop_at=None):
        rates = set_dropout(gpt2, options.dropout)
        fit.run(stopped=lambda: fit.progress.step == stop_at, checkpoint=lambda: None, show=lambda: None)
        restore_dropout(rates)
        return fit

    whole = run(new_fit())
    whole.settle()
    expected = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    half = copy.deepcopy(run(new_fit(), stop_at=9).state_dict())
    second = new_fit()
    second.load_state_dict(half)
    run(second).settle()
    assert second.progress.step == whole.progress.step == 24
    assert second.progress.best_loss == whole.progress.best_loss
    for name, tensor in gpt2.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_every_parameter_has_one_learning_rate_which_falls_towards_the_embeddings(model):
    options = TrainingOptions(layer_decay=0.5, learning_rate=1.0, head_lr_multiplier=4.0)
    groups = parameter_groups(model, options)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len(list(model.parameters()))
    blocks = model.backbone.h if hasattr(model.backbone, "h") else model.backbone.layers
    assert rates[id(model.head.weight)] == 4
    assert {rates[id(p)] for p in blocks[1].parameters()} == {1.0}
    assert {rates[id(p)] for p in blocks[0].parameters()} == {0.5}
    assert rates[id(model.backbone.get_input_embeddings().weight)] == 0.25


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"layer_decay": 0.0}, {"dropout": 1.5}])
def test_options_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingOptions(**wrong)
