"""Step path and batch path give the same tokens, rewards and log-probs (tolerance: sums in another order)."""

from itertools import product

import numpy as np
import pytest

from textenvs import KLShaping, PreferenceReward
from textenvs.tokens.rows import PAD, concatenate
from textenvs.wrappers.reference import CausalLMReference

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def share_of_odd_words(prompts, completions):
    return [sum(int(word[1:]) % 2 for word in text.split()[1:]) / 6 for text in completions]


@pytest.fixture(scope="module")
def policy(tiny_gpt2):
    return tiny_gpt2(seed=1).eval()


@pytest.fixture(scope="module")
def sampled(policy):
    """`sample_rows` of the policy, once for the prompts that all cases share."""
    kept = {}

    def sampled(prompts):
        key = prompts.tobytes()
        if key not in kept:
            kept[key] = sample_rows(policy, prompts, 6, np.random.default_rng(2))
        return kept[key]

    return sampled


def sample_rows(model, prompts, budget, generator):
    """Completions and log-probs of a full forward pass a token, uncached and row by row."""
    import torch

    completions = np.full((len(prompts), budget), PAD)
    logprobs = np.zeros((len(prompts), budget))
    for row, prompt in enumerate(prompts):
        tokens = prompt[prompt != PAD].tolist()
        for place in range(budget):
            with torch.no_grad():
                scores = torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1].double(), 0).numpy()
            token = (
                0 if generator.random() < 0.15 else int(generator.choice(40, p=np.exp(scores) / np.exp(scores).sum()))
            )
            completions[row, place], logprobs[row, place] = token, scores[token]
            tokens.append(token)
            if token == 0:
                break
    return completions, logprobs


MODES, BUDGETS, TELLERS = ("SameStep", "NextStep", "Disabled"), ("terminate", "truncate"), ("handed", "acting")
CASES = list(product(MODES, BUDGETS, TELLERS))


@pytest.mark.parametrize("mode, budget, teller", CASES)
def test_stepping_equals_playing(make_envs, policy, sampled, any_model, mode, budget, teller):
    agent = CausalLMReference(policy)

    def acting(observations, actions):
        lengths = (observations != PAD).sum(1)
        return agent.step(observations, lengths, actions, np.ones(len(actions), bool))

    def build():
        envs = PreferenceReward(make_envs(4, budget=budget, autoreset_mode=mode), share_of_odd_words)
        return KLShaping(envs, any_model, beta=0.2, acting=acting if teller == "acting" else None)

    fast, slow = build(), build()
    prompts = fast.draw_prompts(seed=4)
    observations, _ = slow.reset(seed=4)
    np.testing.assert_array_equal(observations[:, : prompts.shape[1]], prompts)
    completions, logprobs = sampled(prompts)
    assert (completions == 0).any()
    assert (completions[:, -1] > 0).any()
    rows = fast.play(prompts, completions, logprobs if teller == "handed" else None)
    np.testing.assert_allclose(rows.logprobs, logprobs, **TOLERANCE)
    np.testing.assert_allclose(rows.rewards.sum(1), rows.scores - 0.2 * rows.kl.sum(1), **TOLERANCE)

    alive = np.ones(4, dtype=bool)
    for column in range(6):
        if mode == "Disabled" and not alive.all():
            slow.reset(options={"reset_mask": ~alive})  # rows that are done begin episodes of no interest
        if teller == "handed":
            slow.hand_logprobs(np.where(alive, logprobs[:, column], -1.0))
        _, rewards, terminated, truncated, infos = slow.step(np.where(alive, completions[:, column], 5))
        np.testing.assert_allclose(rewards[alive], rows.rewards[alive, column], **TOLERANCE)
        np.testing.assert_allclose(infos["kl"][alive], rows.kl[alive, column], **TOLERANCE)
        for index in np.flatnonzero(alive & (terminated | truncated)):
            assert (terminated[index], truncated[index]) == (rows.terminated[index], rows.truncated[index])
            assert infos["stop_reason"][index] == rows.stop_reason[index]
            np.testing.assert_allclose(infos["score"][index], rows.scores[index], **TOLERANCE)
            if mode == "SameStep":
                joint = concatenate(prompts, completions)[index]
                np.testing.assert_array_equal(infos["final_obs"][index], joint)
        alive &= ~(terminated | truncated)
    assert not alive.any()
