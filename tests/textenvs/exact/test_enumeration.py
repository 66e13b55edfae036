import itertools

import numpy as np
import pytest

from textenvs.exact import enumeration as exact
from textenvs.tokens.rows import PAD

BETA = 0.3


@pytest.fixture(scope="module")
def problem():
    """Two prompts over five tokens, of which 1 ends a text, and four places; reference and scores at random."""
    generator = np.random.default_rng(0)
    tree = exact.TokenTree.build(5, 1, 4)
    ref = _normalized(generator.normal(size=(2, len(tree.prefixes), 5)))
    return tree, ref, generator.normal(size=(2, len(tree.completions)))


def _normalized(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _random_policy(tree, seed, scale=1.0):
    return _normalized(np.random.default_rng(seed).normal(scale=scale, size=(2, len(tree.prefixes), 5)))


def _brute_force_rows():
    """Every completion, by cutting all 5^4 strings of tokens at their first end."""
    cut = {tuple(row[: row.index(1) + 1] if 1 in row else row) for row in itertools.product(range(5), repeat=4)}
    return sorted(cut)


def test_the_tree_holds_every_completion_once(problem):
    tree, _, _ = problem
    assert sorted(tuple(row[row != PAD].tolist()) for row in tree.completions) == _brute_force_rows()
    assert len(tree.prefixes) == 1 + 4 + 16 + 64
    for row, states in zip(tree.completions, tree.states, strict=True):
        for place in range(int((row != PAD).sum())):
            prefix = tree.prefixes[states[place]]
            assert prefix[prefix != PAD].tolist() == row[:place].tolist()
    np.testing.assert_array_equal(tree.locate(tree.completions), np.where(tree.mask, tree.states, 0))


def test_probabilities_of_completions_sum_to_one(problem):
    tree, ref, _ = problem
    np.testing.assert_allclose(np.exp(exact.sequence_logprobs(tree, ref)).sum(axis=1), 1.0)


def test_the_optimum_equals_the_tilted_reference_by_brute_force(problem):
    tree, ref, scores = problem
    optimum = exact.soft_optimum(tree, ref, scores, BETA)
    for prompt in range(2):
        weights = {}
        for row, score in zip(tree.completions, scores[prompt], strict=True):
            tokens, state, probability = row[row != PAD].tolist(), 0, 1.0
            for token in tokens:
                probability *= np.exp(ref[prompt, state, token])
                state = tree.children[state, token]
            weights[tuple(tokens)] = probability * np.exp(score / BETA)
        z = sum(weights.values())
        np.testing.assert_allclose(optimum.soft_values[prompt, 0], BETA * np.log(z), rtol=1e-12)
        rows = np.exp(exact.sequence_logprobs(tree, optimum.logprobs))[prompt]
        expected = [weights[tuple(row[row != PAD].tolist())] / z for row in tree.completions]
        np.testing.assert_allclose(rows, expected, rtol=1e-9)
        # a token's optimal probability is the share of the weight of all that begins with it
        beginning = sum(weight for row, weight in weights.items() if row[:2] == (3, 0))
        before = sum(weight for row, weight in weights.items() if row[:1] == (3,))
        np.testing.assert_allclose(np.exp(optimum.logprobs[prompt, tree.children[0, 3], 0]), beginning / before)


def test_the_optimum_attains_beta_log_z_and_satisfies_the_soft_bellman_equation(problem):
    tree, ref, scores = problem
    optimum = exact.soft_optimum(tree, ref, scores, BETA)
    best = exact.outcome(tree, optimum.logprobs, ref, scores, BETA)
    np.testing.assert_allclose(best.objective, optimum.soft_values[:, 0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.exp(optimum.logprobs).sum(axis=2), 1.0)
    values, q = exact.action_values(tree, optimum.logprobs, ref, scores, BETA)
    np.testing.assert_allclose(values, optimum.soft_values, atol=1e-10)
    np.testing.assert_allclose(q, np.broadcast_to(values[:, :, None], q.shape), atol=1e-10)  # no token has an advantage


def test_outcome_equals_the_expectation_of_rewards_along_the_tree(problem):
    tree, ref, scores = problem
    policy = _random_policy(tree, 1)
    attained = exact.outcome(tree, policy, ref, scores, BETA)
    values, _ = exact.action_values(tree, policy, ref, scores, BETA)
    np.testing.assert_allclose(values[:, 0], attained.objective)
    per_prefix = (np.exp(policy) * (policy - ref)).sum(axis=2)
    np.testing.assert_allclose((exact.visits(tree, policy) * per_prefix).sum(axis=1), attained.kl)
    assert (attained.kl > 0).all()


def test_the_shortfall_of_any_policy_is_its_kl_to_the_optimum(problem):
    tree, ref, scores = problem
    optimum = exact.soft_optimum(tree, ref, scores, BETA)
    policy = _random_policy(tree, 2)
    short = optimum.soft_values[:, 0] - exact.outcome(tree, policy, ref, scores, BETA).objective
    np.testing.assert_allclose(short, BETA * exact.outcome(tree, policy, optimum.logprobs, scores, 0.0).kl)


def test_the_gradient_equals_finite_differences_and_vanishes_at_the_optimum(problem):
    tree, ref, scores = problem
    logits = np.random.default_rng(3).normal(size=ref.shape)
    gradient = exact.objective_gradient(tree, _normalized(logits), ref, scores, BETA)
    for index in [(0, 0, 2), (1, 3, 1), (0, 40, 4)]:
        step = np.zeros_like(logits)
        step[index] = 1e-5
        ahead, behind = (
            exact.outcome(tree, _normalized(logits + sign * step), ref, scores, BETA).objective.sum()
            for sign in (1, -1)
        )
        np.testing.assert_allclose(gradient[index], (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-9)
    optimum = exact.soft_optimum(tree, ref, scores, BETA)
    assert np.abs(exact.objective_gradient(tree, optimum.logprobs, ref, scores, BETA)).max() < 1e-12


def test_every_perturbation_of_the_optimum_is_worse(problem):
    tree, ref, scores = problem
    optimum = exact.soft_optimum(tree, ref, scores, BETA)
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(scale=0.01, size=ref.shape)
        worse = exact.outcome(tree, _normalized(optimum.logprobs + noise), ref, scores, BETA).objective
        assert (worse < optimum.soft_values[:, 0]).all()


def test_gap_is_one_at_the_start_zero_at_the_optimum_and_undefined_without_a_way():
    assert exact.optimality_gap(1.0, 3.0, 1.0) == 1.0
    assert exact.optimality_gap(3.0, 3.0, 1.0) == 0.0
    assert exact.optimality_gap(2.5, 3.0, 1.0) == 0.25
    with pytest.raises(ValueError, match="nothing to learn"):
        exact.optimality_gap(1.0, 1.0, 1.0)


def test_a_high_price_keeps_the_reference_and_a_low_one_finds_the_best_completion(problem):
    tree, ref, scores = problem
    near = exact.outcome(tree, exact.soft_optimum(tree, ref, scores, 1e4).logprobs, ref, scores, 0.0)
    far = exact.outcome(tree, exact.soft_optimum(tree, ref, scores, 1e-3).logprobs, ref, scores, 0.0)
    assert near.kl.max() < 1e-6
    np.testing.assert_allclose(far.score, scores.max(axis=1), atol=0.01)


def test_tabulate_asks_a_reference_of_rows_for_every_prefix_and_token(problem):
    tree, ref, _ = problem
    prompts = np.array([[7, 7], [8, PAD]])

    def reference(asked_prompts, completions):
        which = (asked_prompts[:, 0] == 8).astype(int)
        table = ref[which[:, None], tree.locate(completions), completions]
        return np.where(completions == PAD, np.nan, table)

    np.testing.assert_allclose(exact.tabulate(tree, prompts, reference), ref)


def test_bad_problems_are_refused(problem):
    tree, ref, scores = problem
    with pytest.raises(ValueError, match="beta: expected a positive number"):
        exact.soft_optimum(tree, ref, scores, 0.0)
    with pytest.raises(ValueError, match="sum to 1"):
        exact.soft_optimum(tree, ref + 0.1, scores, BETA)
    with pytest.raises(ValueError, match="positive probability"):
        exact.soft_optimum(tree, np.where(ref == ref.max(), -np.inf, ref), scores, BETA)
    with pytest.raises(ValueError, match="expected scores"):
        exact.soft_optimum(tree, ref, scores[:, 1:], BETA)
    with pytest.raises(ValueError, match="too many"):
        exact.TokenTree.build(50, 0, 6)
    with pytest.raises(ValueError, match="eos_token_id 5"):
        exact.TokenTree.build(5, 5, 4)
