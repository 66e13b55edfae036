"""What each algorithm climbs in the mean: its own gradient on every batch it could draw, weighted by the probability.

Nothing is sampled. On a problem of seven completions all texts, pairs or triples of a prompt are handed to the agent's
own ``judge`` and ``update`` in float64, one batch after the other; the sum is held against the policy gradient
theorem's (``exact.objective_gradient``), at the reference, where no KL is charged yet, and away from it.
"""

import itertools
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents.rollout import Rollout
from agents.runs.distributed import ALONE
from agents.text.agent import TextAgent
from agents.text.config import TextAgentConfig
from agents.verification.exact.tabular import TabularTextPolicy
from textenvs.exact import enumeration as exact

TREE = exact.TokenTree.build(3, 0, 2)
BETA, T = 0.4, TREE.max_new_tokens
SHAPE = (2, len(TREE.prefixes), TREE.vocab_size)
PROMPTS = np.array([[1], [2]])


def normalized(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


RNG = np.random.default_rng(0)
REFERENCE = normalized(RNG.normal(size=SHAPE))
AWAY = normalized(REFERENCE + RNG.normal(size=SHAPE))
SCORES = RNG.normal(size=(2, len(TREE.completions)))
WRONG_VALUES = RNG.normal(size=SHAPE[:2])


class Table(TabularTextPolicy):
    """With values that the rollout brings along; their own loss is not looked at."""

    has_critic = True


def agent_of(algorithm, logprobs, rows, **options):
    settings = {"minibatch_size": rows, "epochs": 1, "learning_rate": 0.0, "max_grad_norm": 1e9, "average": "constant"}
    settings |= {"normalize_advantages": "none", "kl_in": "reward"} | options
    if algorithm == "grpo":
        settings.setdefault("normalize_std", False)
    config = TextAgentConfig.for_algorithm(algorithm, **settings)
    states = np.concatenate([np.repeat(PROMPTS, SHAPE[1], 0), np.tile(TREE.prefixes, (2, 1))], axis=1)
    build = Table if config.uses_critic else TabularTextPolicy
    policy = build(states, logprobs.reshape(-1, SHAPE[2]), prompt_length=1, eos_token_id=0).double()
    with torch.no_grad():
        policy.logits[:-1] = torch.from_numpy(logprobs.reshape(-1, SHAPE[2]))  # as they were before float32
    charged = config.kl_in != "loss"
    base = SimpleNamespace(num_envs=rows, budget="terminate")
    collector = SimpleNamespace(
        beta=BETA, group_size=config.group_size, dynamic_sampling=0, charges_kl=charged, base=base, processes=ALONE,
        check_fits=lambda policy: None,
    )  # fmt: skip
    return TextAgent(config, policy, collector=collector)


def rollout_of(prompt, chosen, logprobs, values, charged):
    """The completions ``chosen`` as the environments would have paid them, in float64."""
    states, tokens, mask = (torch.from_numpy(x[list(chosen)]) for x in (TREE.states, TREE.completions, TREE.mask))
    pick = [torch.from_numpy(table[prompt])[states, tokens.clamp(min=0)] * mask for table in (logprobs, REFERENCE)]
    last = mask.sum(1) - 1
    ended = torch.arange(T) == last[:, None]
    rewards = ended * torch.from_numpy(SCORES[prompt, list(chosen)])[:, None]
    rewards = rewards - BETA * (pick[0] - pick[1]) if charged else rewards
    known = torch.from_numpy(values[prompt])[states] * mask
    coming = torch.cat([known[:, 1:], torch.zeros(len(mask), 1)], dim=1) * ~ended
    return Rollout(
        observations=torch.from_numpy(PROMPTS[[prompt] * len(chosen)]), actions=tokens, logprobs=pick[0], values=known,
        next_values=coming, rewards=rewards, terminated=ended, ended=ended, mask=mask, ref_logprobs=pick[1],
    )  # fmt: skip


def expected_gradient(algorithm, logprobs, rows, values=WRONG_VALUES, past=None, **options):
    """The mean over all batches of ``rows`` texts of one prompt of minus the loss's gradient, ``[M, S, V]``.

    A batch stands for all its orders, of which the loss is the same. ``past`` is the running baseline of earlier ones.
    """
    agent = agent_of(algorithm, logprobs, rows, **options)
    probabilities = np.exp(exact.sequence_logprobs(TREE, logprobs))
    charged = agent.config.kl_in != "loss"
    found = np.zeros(SHAPE)
    for prompt in range(2):
        for chosen in itertools.combinations_with_replacement(range(len(TREE.completions)), rows):
            agent.moving_baseline = past
            agent.update(agent.compute_advantages(rollout_of(prompt, chosen, logprobs, values, charged)))
            orders = math.factorial(rows) // math.prod(map(math.factorial, Counter(chosen).values()))
            weight = orders * probabilities[prompt, list(chosen)].prod()
            found -= weight * agent.policy.logits.grad[:-1].numpy().reshape(SHAPE)
    return found


def objective_gradient(logprobs, beta=BETA):
    """Of J; divided by the budget, as the constant average has it."""
    return exact.objective_gradient(TREE, logprobs, REFERENCE, SCORES, beta) / T


def text_gradients(logprobs):
    """``[M, Y, S, V]`` the gradient of each completion's log-probability by the logits."""
    one_hot, probabilities = np.eye(SHAPE[2]), np.exp(logprobs)
    found = np.zeros((2, len(TREE.completions), *SHAPE[1:]))
    for y, (row, states, mask) in enumerate(zip(TREE.completions, TREE.states, TREE.mask, strict=True)):
        for token, state in zip(row[mask], states[mask], strict=True):
            found[:, y, state] += one_hot[token] - probabilities[:, state]
    return found


def returns_of(logprobs):
    """``[M, Y]`` score less price, and ``[M, Y]`` probabilities."""
    of_rows = exact.sequence_logprobs(TREE, logprobs)
    return SCORES - BETA * (of_rows - exact.sequence_logprobs(TREE, REFERENCE)), np.exp(of_rows)


def equal(found, expected):
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


at_both = pytest.mark.parametrize("logprobs", [REFERENCE, AWAY], ids=["at the reference", "away from it"])


@at_both
@pytest.mark.parametrize("options", [{"baseline": "none"}, {"baseline": "none", "reward_to_go": True}], ids=str)
def test_reinforce_climbs_the_objective(options, logprobs):
    equal(expected_gradient("reinforce", logprobs, 1, **options), objective_gradient(logprobs))


@at_both
def test_a_baseline_of_the_past_changes_nothing_and_one_of_the_batch_the_length_alone(logprobs):
    climbed = objective_gradient(logprobs)
    equal(expected_gradient("reinforce", logprobs, 1, baseline="moving", past=0.7), climbed)
    # the batch's mean holds a text's own return: 1 / B of the gradient is taken away again
    equal(expected_gradient("reinforce", logprobs, 2, baseline="batch"), climbed * (1 - 1 / 2))


@at_both
def test_ppo_climbs_it_whatever_its_critic_says_if_lambda_is_1(logprobs):
    equal(expected_gradient("ppo", logprobs, 1, lam=1.0), objective_gradient(logprobs))


@at_both
@pytest.mark.parametrize("lam", [0.0, 0.6])
def test_below_1_ppo_needs_a_critic_that_is_right(lam, logprobs):
    right, _ = exact.action_values(TREE, logprobs, REFERENCE, SCORES, BETA)
    climbed = objective_gradient(logprobs)
    equal(expected_gradient("ppo", logprobs, 1, values=right, lam=lam), climbed)
    assert np.abs(expected_gradient("ppo", logprobs, 1, lam=lam) - climbed).max() > 0.01


@at_both
@pytest.mark.parametrize("size", [2, 3])
def test_rloos_baseline_is_unbiased(size, logprobs):
    equal(expected_gradient("rloo", logprobs, size, group_size=size), objective_gradient(logprobs))


@at_both
@pytest.mark.parametrize("size", [2, 3])
def test_grpo_without_the_deviation_climbs_it_shortened_by_a_texts_share_in_its_own_baseline(size, logprobs):
    expected = objective_gradient(logprobs) * (1 - 1 / size)
    equal(expected_gradient("grpo", logprobs, size, group_size=size), expected)


def test_grpos_deviation_makes_of_a_pair_who_won_and_not_by_how_much():
    returns, probabilities = returns_of(AWAY)
    apart = returns[:, :, None] - returns[:, None]
    won = apart / 2 / (np.abs(apart) / np.sqrt(2) + 1e-4)  # the sign over sqrt(2), but for GRPO's epsilon
    np.testing.assert_allclose(won, np.sign(apart) / np.sqrt(2), atol=0.01)
    credit = (won * probabilities[:, None]).sum(2)
    expected = np.einsum("my,my,mysv->msv", probabilities, credit, text_gradients(AWAY)) / T
    found = expected_gradient("grpo", AWAY, 2, group_size=2, normalize_std=True)
    equal(found, expected)
    climbed = objective_gradient(AWAY)
    assert (found * climbed).sum() / np.linalg.norm(found) / np.linalg.norm(climbed) < 0.999


def test_the_mean_of_texts_means_weighs_a_text_by_one_over_its_length():
    returns, probabilities = returns_of(AWAY)
    centered = returns - (probabilities * returns).sum(1, keepdims=True)
    weighed = probabilities * centered / TREE.mask.sum(1)
    # the two of a pair share a baseline: what is subtracted, half a return each, has mean (E R) / 2 beside R / 2
    expected = 0.5 * np.einsum("my,mysv->msv", weighed, text_gradients(AWAY))
    equal(expected_gradient("grpo", AWAY, 2, group_size=2, average="sequence"), expected)
    climbed = objective_gradient(AWAY)
    assert (expected * climbed).sum() / np.linalg.norm(expected) / np.linalg.norm(climbed) < 0.999


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_kl_in_the_loss_pulls_at_each_token_and_not_at_what_it_leads_to(estimator):
    log_ratio, chances = AWAY - REFERENCE, np.exp(AWAY)
    pull = {
        "k1": np.zeros(SHAPE),
        "k2": chances * (log_ratio - (chances * log_ratio).sum(2, keepdims=True)),
        "k3": chances - np.exp(REFERENCE),
    }[estimator]
    pulled = BETA * exact.visits(TREE, AWAY)[:, :, None] * pull / T
    found = expected_gradient("grpo", AWAY, 2, group_size=2, kl_in="loss", kl_estimator=estimator)
    equal(found, objective_gradient(AWAY, beta=0.0) / 2 - pulled)


def test_at_the_optimum_all_returns_are_equal_so_that_no_group_teaches_anything_and_nothing_is_noise():
    optimum = exact.soft_optimum(TREE, REFERENCE, SCORES, BETA).logprobs
    agent = agent_of("rloo", optimum, 3, group_size=3)
    for chosen in itertools.combinations(range(len(TREE.completions)), 3):
        batch = agent.compute_advantages(rollout_of(1, chosen, optimum, WRONG_VALUES, charged=True))
        assert batch.advantages.abs().max() < 1e-12
