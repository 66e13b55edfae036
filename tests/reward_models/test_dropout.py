"""Dropout while a reward model is trained: the option says how much, wherever a family keeps its rates (trap T9)."""

import pytest
import torch

from reward_models.data.comparisons import PairBatches, pair_comparisons
from reward_models.data.pairs import PreferencePair
from reward_models.training import TrainingOptions, dropout_rates, fit, restore_dropout, set_dropout

ALL_FAMILIES = pytest.mark.parametrize("model", ["gpt2", "llama", "opt", "falcon"], indirect=True)
PAIRS = [PreferencePair(prompt="the film", chosen=" is good", rejected=f" is bad {word}") for word in "abcd"]


@torch.no_grad()
def two_passes_differ(model):
    rows = model.encode(["the film is good", "a bad plot"] * 3)
    first, second = (model.raw(*model.pad(rows)) for _ in range(2))
    return not torch.equal(first, second)


@ALL_FAMILIES
def test_a_rate_reaches_all_that_draws_and_0_leaves_nothing_that_does(model):
    model.train()
    before = dropout_rates(model)
    assert two_passes_differ(model)
    usual = set_dropout(model, 0.0)
    assert not two_passes_differ(model)
    set_dropout(model, 0.5)
    assert two_passes_differ(model)
    assert {rate for _, _, rate, _ in dropout_rates(model)} == {0.5}
    restore_dropout(usual)
    assert dropout_rates(model) == usual == before


@ALL_FAMILIES
def test_attention_has_a_rate_of_its_own(model):
    family = type(model.train().backbone).__name__
    set_dropout(model, 0.0, attention=0.5)
    assert two_passes_differ(model) == (family != "FalconModel")  # whose code passes 0 to torch's attention
    set_dropout(model, 0.5, attention=0.0)
    assert two_passes_differ(model) == (family != "LlamaModel")  # which has no other
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def look(*given, dropout_p=0.0, **options):
        seen.append(dropout_p)
        return attend(*given, dropout_p=dropout_p, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", look)
        two_passes_differ(model)
    assert set(seen) == {0.0}


@ALL_FAMILIES
@pytest.mark.parametrize("rates", [{}, {"dropout": 0.5}, {"attention_dropout": 0.5}], ids=str)
def test_fit_trains_with_the_dropout_that_its_options_ask_for_and_gives_the_usual_back(model, rates):
    before, noticed = dropout_rates(model), []

    def look(step, num_steps, *_):
        if step < num_steps:  # after the last step the held-out loss was taken
            noticed.append(two_passes_differ(model))

    options = TrainingOptions(epochs=2, eval_every=1000, **rates)
    fit(model, PairBatches(pairs=PAIRS, batch_size=2), [pair_comparisons(PAIRS)], options, on_step=look)
    falcon = type(model.backbone).__name__ == "FalconModel"  # passes 0 to torch's attention
    assert noticed == [bool(rates) and not (falcon and "dropout" not in rates)] * 3
    assert dropout_rates(model) == before
    assert not two_passes_differ(model)


@pytest.mark.parametrize("model", ["opt"], indirect=True)
def test_a_number_that_is_no_dropout_rate_stays_what_it_is(model):
    usual = set_dropout(model, 0.5)
    assert {"p", "dropout", "attention_dropout"} >= {name for _, name, *_ in usual}
    assert model.backbone.config.layerdrop == model.backbone.decoder.layerdrop == 0.0
