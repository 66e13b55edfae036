"""Groups of equal returns are replaced by groups drawn anew: which are kept, what fills, seeds and resume (T14, S2)."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents.functional.group_advantages import flat_groups
from agents.lm.causal_lm import CausalLMPolicy
from agents.rollout import Rollout
from agents.text.collector import TextCollector
from agents.text.dynamic_sampling import fill_rollout
from agents.text.kl_controllers import AdaptiveKL
from textenvs.envs.vector import TokenVectorEnv
from textenvs.tokens.rows import TokenRows
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

V, EOS, T, ROWS, SIZE = 11, 0, 4, 12, 3


def batch_of(returns, first):
    """A batch in groups of two whose row i has the token ``first + i`` and one of ``returns``."""
    number = len(returns)
    tokens, mask = torch.arange(first, first + number)[:, None], torch.ones(number, 1, dtype=torch.bool)
    rewards = torch.tensor(returns)[:, None]
    rollout = Rollout(
        observations=tokens, actions=tokens, logprobs=-rewards, values=rewards, next_values=rewards, rewards=rewards,
        terminated=mask, ended=mask, mask=mask, ref_logprobs=None,
    )  # fmt: skip
    ended = np.ones(number, dtype=bool)
    rows = TokenRows(
        prompts=tokens.numpy(), completions=tokens.numpy(), rewards=rewards.numpy(), terminated=ended, truncated=~ended,
        stop_reason=np.full(number, "eos"), member_scores={"one": np.arange(first, first + number, dtype=np.float32)},
    )  # fmt: skip
    return rollout, rows, {"rollout/score": float(np.mean(returns)), "time/generate_s": 2.0}


def filled(draws, most):
    batches = iter([batch_of(returns, 100 * number) for number, returns in enumerate(draws, start=1)])
    rollout, rows, metrics = fill_rollout(lambda: next(batches), 2, most)
    assert rollout.actions[:, 0].tolist() == rows.completions[:, 0].tolist() == rows.member_scores["one"].tolist()
    assert rollout.rewards[:, 0].tolist() == rows.rewards[:, 0].tolist()
    assert rollout.ref_logprobs is rows.kl is None
    return rollout.actions[:, 0].tolist(), metrics


FLAT, MIXED = [1.0, 1.0], [0.0, 1.0]


def test_flat_groups_make_room_for_informative_ones_in_the_order_in_which_they_were_drawn():
    tokens, metrics = filled([FLAT + MIXED + FLAT, MIXED + FLAT + MIXED, MIXED * 3], most=5)
    assert tokens == [102, 103, 200, 201, 204, 205]
    assert metrics["rollout/draws"] == 2.0
    assert metrics["rollout/groups_dropped"] == pytest.approx(3 / 6)
    assert metrics["rollout/groups_filled"] == 0.0


def test_informative_groups_that_are_too_many_are_left_out_and_are_not_called_dropped():
    tokens, metrics = filled([MIXED + FLAT, MIXED + MIXED], most=1)
    assert tokens == [100, 101, 200, 201]
    assert metrics["rollout/groups_dropped"] == pytest.approx(1 / 4)


def test_after_the_bound_flat_groups_fill_the_batch_and_their_share_is_logged():
    tokens, metrics = filled([FLAT + FLAT + MIXED, FLAT + MIXED + FLAT, MIXED * 3], most=1)
    assert tokens == [104, 105, 202, 203, 100, 101]
    assert metrics["rollout/draws"] == 2.0
    assert metrics["rollout/groups_filled"] == pytest.approx(1 / 3)


def test_scores_are_those_of_all_texts_drawn_not_of_the_chosen_ones_and_seconds_add_up():
    _, metrics = filled([FLAT + FLAT, MIXED + MIXED], most=1)
    assert metrics["rollout/score"] == pytest.approx((1.0 + 0.5) / 2)
    assert metrics["time/generate_s"] == 4.0


def test_without_it_a_batch_is_handed_on_as_it_was_drawn():
    batch = batch_of(FLAT, 0)
    assert fill_rollout(lambda: batch, 2, 0) is batch
    tokens, metrics = filled([MIXED + MIXED, FLAT + FLAT], most=3)
    assert (tokens, metrics["rollout/draws"]) == ([100, 101, 102, 103], 1.0)


class HasThree:
    """1 if the text has a 3: many groups are equal."""

    def score_tokens(self, prompts, completions):
        return (completions == 3).any(1).astype(np.float32)


def policy_of():
    torch.manual_seed(0)
    ids = dict(vocab_size=V, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS, initializer_range=0.3)
    return CausalLMPolicy(
        GPT2LMHeadModel(GPT2Config(n_positions=8, n_embd=8, n_layer=1, n_head=1, **ids)), critic="none"
    )


def collector_of(dynamic_sampling, **options):
    prompts = [[1 + i % 5] * (1 + i % 3) for i in range(20)]
    envs = TokenVectorEnv(ROWS, prompts=prompts, eos_token_id=EOS, vocab_size=V, max_new_tokens=T, group_size=SIZE)
    envs = PreferenceReward(envs, HasThree())
    if options:
        envs = KLShaping(envs, lambda prompts, completions: np.full(completions.shape, -2.0), 0.1, charge=False)
    return TextCollector(envs, seed=5, dynamic_sampling=dynamic_sampling, **options)


def groups_of(rollout):
    flat = flat_groups(rollout.rewards.sum(1), SIZE)
    return [(bool(flat[i]), rollout.actions[SIZE * i : SIZE * (i + 1)]) for i in range(len(flat))]


def test_a_rollout_holds_the_informative_groups_of_a_collector_that_draws_on():
    policy, plain, dynamic = policy_of(), collector_of(0), collector_of(6)
    rollout, metrics = dynamic.collect(policy)
    draws = int(metrics["rollout/draws"])
    assert 2 <= draws <= 7
    groups = [group for _ in range(draws) for group in groups_of(plain.collect(policy)[0])]
    expected = sorted(groups, key=lambda group: group[0])[: ROWS // SIZE]  # stable: the flat ones last
    assert torch.equal(rollout.actions, torch.cat([actions for _, actions in expected]))
    assert np.array_equal(dynamic.last.completions, rollout.actions.numpy())
    prompts = rollout.observations.view(-1, SIZE, rollout.observations.shape[1])
    assert (prompts == prompts[:, :1]).all()
    assert metrics["rollout/groups_dropped"] == pytest.approx(np.mean([flat for flat, _ in groups]))


def test_a_state_between_rollouts_goes_on_bit_for_bit():
    policy, undisturbed, half, resumed = policy_of(), *(collector_of(2) for _ in range(3))
    expected = [undisturbed.collect(policy)[0].actions for _ in range(3)]
    half.collect(policy)
    resumed.load_state_dict(half.state_dict())
    assert all(torch.equal(resumed.collect(policy)[0].actions, each) for each in expected[1:])


def test_the_kl_coefficient_moves_once_a_rollout_by_the_texts_learned_from():
    policy, controller = policy_of(), AdaptiveKL(target=0.1, horizon=60.0)
    collector = collector_of(3, kl_controller=controller)
    _, metrics = collector.collect(policy)
    assert metrics["rollout/draws"] > 1
    assert metrics["rollout/beta"] == 0.1
    expected = controller.updated(0.1, metrics["rollout/kl_per_sequence"], ROWS)
    assert collector.envs.beta == pytest.approx(expected)
