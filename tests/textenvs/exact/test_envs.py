import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import textenvs  # noqa: F401 (registers the ids)
from textenvs.exact import enumeration as exact
from textenvs.exact.envs import random, sentiment, spelling
from textenvs.tokens.rows import PAD

IDS = ["textenvs/ExactSpelling-v0", "textenvs/ExactSentiment-v0", "textenvs/ExactRandom-v0"]


def _sample(task, logprobs, generator):
    """Completions ``[M, T]``, one a prompt, and their log-probs, drawn token by token."""
    completions = np.full((len(task.prompts), task.tree.max_new_tokens), PAD)
    paid = np.zeros(completions.shape, dtype=np.float32)
    for prompt in range(len(task.prompts)):
        state, place = 0, 0
        while state >= 0:
            token = generator.choice(len(task.words), p=np.exp(logprobs[prompt, state]))
            completions[prompt, place], paid[prompt, place] = token, logprobs[prompt, state, token]
            state, place = task.tree.children[state, token], place + 1
    return completions, paid


@pytest.mark.parametrize("env_id", IDS)
def test_check_env_passes_without_warnings(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id)
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("task", [spelling(), sentiment(), random()], ids=["spelling", "sentiment", "random"])
def test_there_is_a_way_to_go_and_the_best_policy_keeps_some_doubt(task):
    assert task.gap(task.ref_logprobs) == 1.0
    assert abs(task.gap(task.optimum.logprobs)) < 1e-10
    assert task.best.mean_objective - task.start.mean_objective > 0.3
    np.testing.assert_allclose(task.start.kl, 0, atol=1e-12)
    assert 0.3 < task.best.kl.mean() < 8
    assert np.exp(task.optimum.logprobs[:, 0]).max() < 0.999


@pytest.mark.parametrize("env_id", IDS)
def test_episodes_pay_score_minus_price_as_the_enumeration_has_it(env_id):
    envs = gym.make_vec(env_id, num_envs=3)
    task = envs.unwrapped.task
    policy = exact.soft_optimum(task.tree, task.ref_logprobs, task.scores, 2 * task.beta).logprobs
    generator = np.random.default_rng(0)
    for _ in range(20):
        completions, logprobs = _sample(task, policy, generator)
        rows = envs.play(task.prompts, completions, logprobs)
        which = [task.tree.completions.tolist().index(row.tolist()) for row in completions]
        prompts = np.arange(len(which))
        kl = (exact.sequence_logprobs(task.tree, policy) - exact.sequence_logprobs(task.tree, task.ref_logprobs))[
            prompts, which
        ]
        np.testing.assert_allclose(rows.scores, task.scores[prompts, which], rtol=1e-6)
        np.testing.assert_allclose(rows.kl.sum(axis=1), kl, rtol=1e-5, atol=1e-6)
        returns = task.scores[prompts, which] - task.beta * kl
        np.testing.assert_allclose(rows.rewards.sum(axis=1), returns, rtol=1e-4, atol=1e-5)


def test_stepping_pays_the_same_as_playing():
    envs = gym.make_vec("textenvs/ExactSentiment-v0", num_envs=4, acting=lambda observations, actions: np.full(4, -1.0))
    task = envs.unwrapped.task
    prompts = envs.reset(seed=1)[0][:, :1]
    completions = task.tree.completions[[0, 10, 200, 700]]
    paid = np.zeros(4)
    alive = np.ones(4, dtype=bool)
    for place in range(completions.shape[1]):
        _, rewards, terminated, _, _ = envs.step(np.maximum(completions[:, place], 0))
        paid += np.where(alive, rewards, 0)
        alive &= ~terminated
    rows = envs.play(prompts, completions, np.full(completions.shape, -1.0))
    np.testing.assert_allclose(paid, rows.rewards.sum(axis=1), rtol=1e-5)


def test_sentiment_reads_the_words_as_said():
    task = sentiment()
    good, bad, very, no, film = range(1, 6)
    rows = {
        (very, good, 0): 1.5,
        (no, good, 0): -1.0,
        (no, bad, film, good): 2.0,
        (bad, very, film, good): 0.0,
        (0,): 0.0,
    }
    completions = np.full((len(rows), 4), PAD)
    for index, row in enumerate(rows):
        completions[index, : len(row)] = row
    np.testing.assert_allclose(task.score_tokens(np.full((len(rows), 1), film), completions), list(rows.values()))
    np.testing.assert_allclose(task.score_tokens(np.array([[no]]), completions[:1]), [-1.5])
    assert task.text(completions[0]) == "very good ."


def test_spelling_pays_most_for_the_word_and_nothing_for_silence():
    task = spelling()
    best = task.tree.completions[task.scores.argmax(axis=1)]
    assert [task.text(row) for row in best] == ["b a d .", "a .", "c d d a", "d b ."]
    np.testing.assert_allclose(task.scores.max(axis=1), [1.25, 1.5, 1.25, 4 / 3])
    assert task.scores[:, 0].max() == 0.0


def test_states_are_the_observations_of_the_environment():
    envs = gym.make_vec("textenvs/ExactRandom-v0", num_envs=4)
    known = {row.tobytes() for row in envs.unwrapped.task.states}
    observations, _ = envs.reset(seed=0)
    generator = np.random.default_rng(0)
    for _ in range(30):
        assert all(row.tobytes() in known for row in observations)
        observations = envs.step(generator.integers(4, size=4))[0]


def test_beta_is_a_parameter_and_unknown_prompts_are_refused():
    envs = gym.make_vec("textenvs/ExactRandom-v0", num_envs=1, beta=1.25, seed=3)
    assert envs.beta == envs.unwrapped.task.beta == 1.25
    with pytest.raises(ValueError, match="expected prompts of this task"):
        envs.unwrapped.task.score_tokens(np.array([[3]]), np.array([[0, PAD, PAD, PAD]]))
