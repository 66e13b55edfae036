"""Further tokens in each state: by hand, and by all draws there are, in the mean the gradient of the objective."""

import itertools

import numpy as np
import pytest
import torch

from agents.functional.advantages import all_action_advantages, generalized_advantages
from agents.lm.branches import Branches
from agents.rollout import Rollout
from agents.text import branches
from agents.text.config import TextAgentConfig
from textenvs.exact import enumeration as exact

TREE = exact.TokenTree.build(3, 0, 3)
BETA, K = 0.4, 2
SHAPE = (1, len(TREE.prefixes), TREE.vocab_size)
RNG = np.random.default_rng(0)


def normalized(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


REFERENCE = normalized(RNG.normal(size=SHAPE))
LOGPROBS = normalized(REFERENCE + RNG.normal(size=SHAPE))
SCORES = RNG.normal(size=(1, len(TREE.completions)))
WRONG = RNG.normal(size=SHAPE[:2])
RIGHT, _ = exact.action_values(TREE, LOGPROBS, REFERENCE, SCORES, BETA)


def test_by_hand():
    """V = 1; taken q = 4 of an advantage of 5; others 2 and 6, and one that ends the text: b_k = 6, 2, 4, so b = 4."""
    taken, others = all_action_advantages(
        torch.tensor([[5.0]]), torch.tensor([[1.0]]), torch.tensor([[4.0]]), torch.tensor([[True]]),
        torch.tensor([[[2.0, 6.0, 99.0]]]), torch.tensor([[[True, True, False]]]),
    )  # fmt: skip
    assert taken.item() == pytest.approx(5 + 1 - 4 - 3 / 4 * (4 - 4))
    assert others.flatten().tolist() == pytest.approx([(2 - 6) / 4, (6 - 2) / 4, 0.0])


def test_with_none_known_nothing_changes():
    taken, others = all_action_advantages(
        torch.tensor([[5.0]]), torch.tensor([[1.0]]), torch.tensor([[torch.nan]]), torch.tensor([[False]]),
        torch.full((1, 1, 2), torch.nan), torch.zeros(1, 1, 2, dtype=torch.bool),
    )  # fmt: skip
    assert taken.item() == 5.0
    assert others.flatten().tolist() == [0.0, 0.0]


def all_draws():
    """Every text with every draw of K tokens in each of its states: indices of texts, ``[R, T, K]``, probabilities."""
    probabilities = np.exp(exact.sequence_logprobs(TREE, LOGPROBS))[0]
    chosen, drawn, weights = [], [], []
    for text, (states, mask) in enumerate(zip(TREE.states, TREE.mask, strict=True)):
        length = int(mask.sum())
        for tokens in itertools.product(range(TREE.vocab_size), repeat=length * K):
            table = np.zeros((TREE.max_new_tokens, K), dtype=np.int64)
            table[:length] = np.reshape(tokens, (length, K))
            likely = np.exp(LOGPROBS[0, states[:length, None], table[:length]].sum())
            chosen.append(text)
            drawn.append(table)
            weights.append(probabilities[text] * likely)
    return np.array(chosen), torch.from_numpy(np.stack(drawn)), torch.tensor(weights)


def mean_gradient(values, lam, monkeypatch):
    """Of the surrogate at the policy that acted, over all draws, by the logits ``[S, V]``."""
    chosen, tokens, weights = all_draws()
    assert float(weights.sum()) == pytest.approx(1.0)
    states, actions, mask = (torch.from_numpy(each[chosen]) for each in (TREE.states, TREE.completions, TREE.mask))
    logprobs, ref, known = (torch.from_numpy(each[0]) for each in (LOGPROBS, REFERENCE, values))
    children = torch.from_numpy(TREE.children)[states[..., None], tokens]
    drawn = Branches(
        tokens,
        logprobs[states[..., None], tokens],
        ref[states[..., None], tokens],
        known[children.clamp(min=0)],
        tokens == 0,
    )
    old = logprobs[states, actions.clamp(min=0)] * mask
    ended = torch.arange(TREE.max_new_tokens) == mask.sum(1, keepdim=True) - 1
    scores = torch.from_numpy(SCORES[0, chosen])[:, None]
    rewards = ended * scores - BETA * (old - ref[states, actions.clamp(min=0)] * mask)
    here = known[states] * mask
    following = torch.cat([here[:, 1:], torch.zeros(len(mask), 1)], dim=1) * ~ended
    rollout = Rollout(
        observations=torch.ones(len(mask), 1, dtype=torch.int64), actions=actions, logprobs=old, values=here,
        next_values=following, rewards=rewards, terminated=ended, ended=ended, mask=mask,
    )  # fmt: skip
    gae = generalized_advantages(rewards, here, following, ended, ended, gamma=1.0, lam=lam, mask=mask)
    monkeypatch.setattr(branches, "draw_branches", lambda *given, **options: drawn)
    config = TextAgentConfig(branches=K, lam=lam, normalize_advantages="none")
    batch = branches.branched(
        rollout.to_batch(gae), rollout, config, None, object(), beta=BETA, generator=torch.Generator()
    )
    logits = logprobs.clone().requires_grad_(True)
    table = torch.log_softmax(logits, dim=-1)
    terms = batch.advantages * table[states, actions.clamp(min=0)] * mask
    terms = terms + (batch.branch_advantages * table[states[..., None], tokens]).sum(-1)
    (weights * terms.sum(1)).sum().backward()
    return logits.grad.numpy()


@pytest.mark.parametrize(
    ("values", "lam"), [(WRONG, 1.0), (RIGHT, 0.5), (RIGHT, 0.0)], ids=["wrong, 1", "right, 0.5", "right, 0"]
)
def test_in_the_mean_over_all_draws_it_is_the_gradient_of_the_objective(values, lam, monkeypatch):
    expected = exact.objective_gradient(TREE, LOGPROBS, REFERENCE, SCORES, BETA)[0]
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(mean_gradient(values, lam, monkeypatch), expected, rtol=0, atol=1e-12)


def test_equal_advantages_teach_nothing_however_they_are_normalized(monkeypatch):
    """As in `whiten`: their deviation is rounding at most, and not to be divided by."""
    mask = torch.ones(2, 3, dtype=torch.bool)
    ended = torch.arange(3).expand(2, 3) == 2
    drawn = Branches(*(torch.zeros(2, 3, K, dtype=each) for each in (torch.int64, *[torch.float32] * 3, torch.bool)))
    monkeypatch.setattr(branches, "draw_branches", lambda *given, **options: drawn)
    zeros = torch.zeros(2, 3)
    rollout = Rollout(
        observations=torch.ones(2, 1, dtype=torch.int64), actions=torch.ones(2, 3, dtype=torch.int64), logprobs=zeros,
        values=zeros, next_values=zeros, rewards=zeros + 0.3, terminated=ended, ended=ended, mask=mask,
    )  # fmt: skip
    batch = branches.branched(
        rollout.to_batch(zeros + 0.3), rollout, TextAgentConfig(branches=K), None, object(), beta=0.0,
        generator=torch.Generator(),
    )  # fmt: skip
    assert torch.equal(batch.advantages, zeros)
    assert torch.equal(batch.branch_advantages, torch.zeros(2, 3, K))
