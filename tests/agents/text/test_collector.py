"""Whole episodes of text as rollouts: where reward lands, bootstrapping, seeds and resume (T4-T7, T17, S1, S2)."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents.functional.advantages import generalized_advantages
from agents.lm.causal_lm import CausalLMPolicy
from agents.text.collector import TextCollector
from agents.text.kl_controllers import AdaptiveKL, AnnealedKL
from agents.text.rollout_metrics import rollout_metrics
from agents.text.score_scaling import ScoreScaler, overlong_punishment
from textenvs.envs.vector import TokenVectorEnv
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

V, EOS, T = 17, 0, 6


def policy_of(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=V, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4,
        bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS,
    )  # fmt: skip
    policy = CausalLMPolicy(GPT2LMHeadModel(config))
    torch.nn.init.normal_(policy.value_head.weight)
    return policy


class CountsThrees:
    """Score: number of 3s, and 10 for an end of text."""

    def score_tokens(self, prompts, completions):
        return (completions == 3).sum(1) + 10.0 * (completions == EOS).any(1)


def envs_of(num_envs=12, beta=0.3, reference=None, **options):
    prompts = [[1 + i % 5] * (1 + i % 4) for i in range(20)]
    envs = TokenVectorEnv(num_envs, prompts=prompts, eos_token_id=EOS, vocab_size=V, max_new_tokens=T, **options)
    if reference is None:
        frozen = policy_of(seed=7)

        def reference(prompts, completions):
            with torch.no_grad():
                return frozen.evaluate(torch.from_numpy(prompts), torch.from_numpy(completions)).logprobs

    return KLShaping(PreferenceReward(envs, CountsThrees()), reference, beta)


def test_rewards_sum_to_score_minus_beta_kl_and_the_score_is_on_the_last_action():
    collector = TextCollector(envs_of(), seed=1)
    rollout, metrics = collector.collect(policy_of())
    rows = collector.last
    assert {"eos", "length"} == set(rows.stop_reason)
    expected = rows.scores - 0.3 * rows.kl.sum(1)
    np.testing.assert_allclose(rollout.rewards.sum(1).numpy(), expected, rtol=1e-5, atol=1e-5)
    lengths = rollout.mask.sum(1)
    for i, n in enumerate(lengths.tolist()):
        paid = rollout.rewards[i].numpy() + 0.3 * rows.kl[i]
        np.testing.assert_allclose(paid[: n - 1], 0, atol=1e-5)
        assert paid[n - 1] == pytest.approx(rows.scores[i], abs=1e-5)
        assert rollout.ended[i].tolist() == rollout.terminated[i].tolist() == [t == n - 1 for t in range(T)]
    assert metrics["rollout/kl_per_sequence"] == pytest.approx(rows.kl.sum() / 12)
    assert metrics["rollout/kl_per_token"] == pytest.approx(rows.kl.sum() / int(lengths.sum()))


def test_monte_carlo_advantage_is_score_minus_remaining_kl_minus_value():
    collector = TextCollector(envs_of(), seed=1)
    rollout, _ = collector.collect(policy_of())
    advantages = generalized_advantages(
        rollout.rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.ended,
        gamma=1.0, lam=1.0, mask=rollout.mask,
    )  # fmt: skip
    rows = collector.last
    remaining = np.flip(np.flip(rows.kl, 1).cumsum(1), 1)
    expected = rows.scores[:, None] - 0.3 * remaining - rollout.values.numpy()
    np.testing.assert_allclose(advantages.numpy(), np.where(rows.mask, expected, 0), atol=1e-4)


def test_the_value_after_a_step_is_the_value_before_the_next_one():
    rollout, _ = TextCollector(envs_of(), seed=1).collect(policy_of())
    inside = ~rollout.ended[:, :-1] & rollout.mask[:, :-1]
    assert torch.equal(rollout.next_values[:, :-1][inside], rollout.values[:, 1:][inside])
    assert rollout.next_values[rollout.ended].eq(0).all()


def test_a_budget_that_truncates_bootstraps_from_the_whole_text():
    policy = policy_of()
    rollout, _ = TextCollector(envs_of(budget="truncate"), seed=1).collect(policy)
    cut = rollout.ended & ~rollout.terminated
    assert cut.any(1).sum() > 0
    for i in cut.any(1).nonzero()[:, 0].tolist():
        prompt = rollout.observations[i][rollout.observations[i] >= 0]
        whole = torch.cat([prompt, rollout.actions[i]])[None]
        torch.testing.assert_close(rollout.next_values[i, T - 1], policy.values(whole)[0])
    assert rollout.next_values[rollout.terminated].eq(0).all()


def test_price_of_a_missing_end_falls_on_rows_out_of_budget_and_no_other():
    plain, _ = TextCollector(envs_of(), seed=1).collect(policy_of())
    collector = TextCollector(envs_of(), seed=1, missing_eos_penalty=2.5)
    priced, figures_of = collector.collect(policy_of())
    out = torch.from_numpy(collector.last.stop_reason == "length")
    expected = 2.5 * (plain.ended & out[:, None])
    torch.testing.assert_close(plain.rewards - priced.rewards, expected)
    assert figures_of["rollout/return_mean"] == pytest.approx(float(priced.rewards.sum(1).mean()), rel=1e-5)
    assert (priced.actions[out] >= 0).all()


def test_overlong_texts_are_punished_by_how_far_they_reach_into_the_last_tokens_of_the_budget():
    # eq. 13 with L_max 10 and L_cache 4: ((10 - 4) - |y|) / 4 between 6 and 10
    lengths = np.array([1, 5, 6, 7, 8, 9, 10, 11, 99])
    expected = [0.0, 0.0, 0.0, -0.25, -0.5, -0.75, -1.0, -1.0, -1.0]
    assert overlong_punishment(lengths, limit=10, cache=4).tolist() == expected
    plain, _ = TextCollector(envs_of(), seed=1).collect(policy_of())
    for cache, table in ((3, [0, 0, 0, 0, 1 / 3, 2 / 3, 1]), (None, [0, 0, 0, 0, 0, 0, 1])):  # a fifth of 6 tokens is 1
        collector = TextCollector(envs_of(), seed=1, overlong_penalty=2.0, overlong_cache=cache)
        punished, _ = collector.collect(policy_of())
        by_length = 2.0 * torch.tensor(table)[plain.mask.sum(1)]
        assert len(by_length.unique()) >= 2
        torch.testing.assert_close(plain.rewards - punished.rewards, by_length[:, None] * plain.ended)


def test_sampled_tokens_are_the_trained_tokens():
    collector = TextCollector(envs_of(), seed=1)
    rollout, _ = collector.collect(policy_of())
    assert np.array_equal(rollout.actions.numpy(), collector.last.completions)
    assert np.array_equal(rollout.mask.numpy(), collector.last.completions != -1)


def test_first_evaluation_has_ratio_one():
    policy = policy_of()
    rollout, _ = TextCollector(envs_of(), seed=1).collect(policy)
    judged = policy.evaluate(rollout.observations, rollout.actions, rollout.mask)
    ratio = (judged.logprobs - rollout.logprobs).exp()[rollout.mask]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
    assert ((ratio - 1).abs() > 0.2).sum() == 0


def test_kl_of_the_start_against_itself_is_zero():
    policy = policy_of()
    frozen = copy.deepcopy(policy)

    def reference(prompts, completions):
        with torch.no_grad():
            return frozen.evaluate(torch.from_numpy(prompts), torch.from_numpy(completions)).logprobs

    _, metrics = TextCollector(envs_of(reference=reference), seed=0).collect(policy)
    assert abs(metrics["rollout/kl_per_sequence"]) < 1e-5


def test_stepping_and_collecting_are_the_same_thing():
    policy, steps = policy_of(), []
    collected, _ = TextCollector(envs_of(), seed=5).collect(policy)
    envs, generator = envs_of(), torch.Generator().manual_seed(5)
    observations, _ = envs.reset(seed=5)
    for _ in range(T):
        tokens, logprobs = policy.act(torch.from_numpy(observations), generator=generator)
        values = policy.values(torch.from_numpy(observations))
        envs.hand_logprobs(logprobs.numpy())
        observations, rewards, terminated, _, _ = envs.step(tokens.numpy())
        steps.append((tokens, logprobs, values, torch.from_numpy(np.asarray(rewards)), torch.from_numpy(terminated)))
    tokens, logprobs, values, rewards, terminated = (torch.stack(part, 1) for part in zip(*steps, strict=True))
    first = terminated.long().cumsum(1) - terminated.long() == 0
    assert torch.equal(first, collected.mask)
    assert torch.equal(tokens[first], collected.actions[first])
    for stepped, fast in ((logprobs, collected.logprobs), (values, collected.values), (rewards, collected.rewards)):
        torch.testing.assert_close(stepped[first].float(), fast[first], atol=2e-5, rtol=1e-5)


def test_same_seed_same_rollout_and_resume_goes_on_bit_for_bit():
    policy = policy_of()
    undisturbed = TextCollector(envs_of(num_envs=7), seed=3)
    first, second = undisturbed.collect(policy)[0], undisturbed.collect(policy)[0]
    half = TextCollector(envs_of(num_envs=7), seed=3)
    assert torch.equal(half.collect(policy)[0].actions, first.actions)
    state = copy.deepcopy(half.state_dict())
    half.collect(policy)
    resumed = TextCollector(envs_of(num_envs=7), seed=99)
    resumed.load_state_dict(state)
    again = resumed.collect(policy)[0]
    for name in ("observations", "actions", "logprobs", "values", "rewards"):
        assert torch.equal(getattr(again, name), getattr(second, name)), name
    assert not torch.equal(first.actions, second.actions)


def test_the_controller_raises_the_price_when_the_policy_strays_and_lowers_it_when_it_stays():
    controller = AdaptiveKL(target=5.0, horizon=100.0)
    assert controller.updated(0.1, 50.0, 10) == pytest.approx(0.1 * (1 + 0.2 * 10 / 100))
    assert controller.updated(0.1, 0.0, 10) == pytest.approx(0.1 * (1 - 0.2 * 10 / 100))
    assert controller.updated(0.1, 5.5, 10) == pytest.approx(0.1 * (1 + 0.1 * 10 / 100))
    envs = envs_of()
    collector = TextCollector(envs, seed=0, kl_controller=AdaptiveKL(target=0.1, horizon=60.0))
    _, metrics = collector.collect(policy_of())
    assert metrics["rollout/beta"] == pytest.approx(0.3)
    assert envs.beta == pytest.approx(0.3 * (1 + 0.2 * 12 / 60))
    assert collector.state_dict()["envs"]["beta"] == pytest.approx(envs.beta)


def test_an_annealed_price_goes_straight_to_its_end_and_stays_there():
    envs = envs_of()  # 12 texts a rollout
    collector = TextCollector(envs, seed=0, kl_controller=AnnealedKL(start=0.9, end=0.3, horizon=30.0))
    paid = [collector.collect(policy_of())[1]["rollout/beta"] for _ in range(5)]
    assert paid == pytest.approx([0.9, 0.66, 0.42, 0.3, 0.3])
    assert collector.state_dict()["envs"]["beta"] == 0.3
    rising = AnnealedKL(start=0.0, end=0.2, horizon=4.0)
    assert [rising.updated(beta, 1.0, 3) for beta in (0.0, 0.1, 0.2)] == pytest.approx([0.15, 0.2, 0.2])
    for wrong, named in (({"start": -0.1}, "start -0.1"), ({"end": -1.0}, "end -1.0"), ({"horizon": 0.0}, "horizon")):
        with pytest.raises(ValueError, match=named):
            AnnealedKL(**({"start": 0.5, "end": 0.1, "horizon": 10.0} | wrong))


def test_metrics_ignore_padding():
    collector = TextCollector(envs_of(), seed=1)
    collector.collect(policy_of())
    rows = collector.last
    kept = rollout_metrics(rows)
    poisoned = np.where(rows.mask, rows.logprobs, np.nan)
    object.__setattr__(rows, "logprobs", poisoned)
    assert rollout_metrics(rows) == kept
    assert kept["surprisal"] == pytest.approx(-poisoned[rows.mask].mean())
    assert kept["length_mean"] == pytest.approx(rows.mask.sum() / 12)


class Scores:
    """A scorer that says ``scale`` times the number of 3s, plus ``shift``."""

    def __init__(self, scale, shift=0.0):
        self.scale, self.shift = scale, shift

    def score_tokens(self, prompts, completions):
        return self.scale * (completions == 3).sum(1) + self.shift


def collected_with(scorer, names=None, **options):
    prompts = [[1 + i % 5] for i in range(20)]
    base = TokenVectorEnv(12, prompts=prompts, eos_token_id=EOS, vocab_size=V, max_new_tokens=T)
    collector = TextCollector(PreferenceReward(base, scorer, names=names, **options), seed=1)
    _, metrics = collector.collect(policy_of())
    return metrics, (collector.last.completions == 3).sum(1)


def test_several_scorers_means_and_disagreement_by_hand():
    metrics, threes = collected_with([Scores(1), Scores(3)], names=["one", "three"], combine="worst")
    assert threes.sum() > 0
    assert metrics["rollout/score"] == pytest.approx(threes.mean())
    assert metrics["rollout/score/one"] == pytest.approx(threes.mean())
    assert metrics["rollout/score/three"] == pytest.approx(3 * threes.mean())
    assert metrics["rollout/score_disagreement"] == pytest.approx(threes.mean())  # the std of n and 3n is n
    assert "rollout/score_disagreement/one" not in metrics


def test_an_ensembles_own_disagreement_is_told_where_it_is_not_alone():
    class Ensemble:
        members = (Scores(0.0, 1.0), Scores(0.0, 5.0))

    metrics, _ = collected_with([Ensemble(), Scores(0.0, 3.0)], names=["many", "rule"], weights=(1.0, 0.5))
    assert metrics["rollout/score"] == pytest.approx(3 + 1.5)
    assert metrics["rollout/score_disagreement/many"] == 2
    assert metrics["rollout/score_disagreement"] == pytest.approx(np.std([1, 5, 3]))
    assert metrics["rollout/score/many/1"] == 5
    alone, _ = collected_with(Ensemble(), names=["many"])
    assert [name for name in alone if name.startswith("rollout/score_disagreement")] == ["rollout/score_disagreement"]


def test_one_scorer_has_no_disagreement_to_log():
    metrics, _ = collected_with(Scores(1))
    assert [name for name in metrics if name.startswith("rollout/score")] == ["rollout/score", "rollout/score_std"]


def test_a_policy_without_sampling_rules_and_of_a_larger_vocabulary_is_refused():
    policy = SimpleNamespace(eos_token_id=EOS, vocab_size=V + 1)
    with pytest.raises(ValueError, match=f"vocabulary of {V} tokens, received {V + 1}"):
        TextCollector(envs_of()).check_fits(policy)


def test_a_policy_of_another_vocabulary_or_end_is_refused():
    envs = TokenVectorEnv(2, prompts=[[1]], eos_token_id=4, vocab_size=V, max_new_tokens=T)
    with pytest.raises(ValueError, match="end of text 4, received 0"):
        TextCollector(envs).collect(policy_of())
    envs = TokenVectorEnv(2, prompts=[[1]], eos_token_id=EOS, vocab_size=V + 1, max_new_tokens=T)
    with pytest.raises(ValueError, match="vocabulary"):
        TextCollector(envs).collect(policy_of())
    envs = TokenVectorEnv(2, prompts=[[1]], eos_token_id=EOS, vocab_size=V - 1, max_new_tokens=T)
    with pytest.raises(ValueError, match=f"vocabulary of {V - 1} tokens, received {V}"):
        TextCollector(envs).collect(policy_of())
    with pytest.raises(ValueError, match=r"score_scaler .*: expected an environment with a scorer"):
        TextCollector(envs_of().env.env, score_scaler=ScoreScaler(limit=1.0))
    with pytest.raises(ValueError, match="KLShaping"):
        TextCollector(envs, kl_controller=AdaptiveKL(target=1.0, horizon=1.0))
    with pytest.raises(ValueError, match="missing_eos_penalty"):
        TextCollector(envs, missing_eos_penalty=-1.0)
    with pytest.raises(ValueError, match="overlong_penalty: expected reward units >= 0, received -1"):
        TextCollector(envs, overlong_penalty=-1.0)
    with pytest.raises(ValueError, match="overlong_cache needs overlong_penalty"):
        TextCollector(envs, overlong_cache=2)
    with pytest.raises(ValueError, match=f"overlong_cache: expected 1 to {T} tokens, the budget, received {T + 1}"):
        TextCollector(envs, overlong_penalty=1.0, overlong_cache=T + 1)
    with pytest.raises(ValueError, match="target"):
        AdaptiveKL(target=0.0, horizon=1.0)
    with pytest.raises(ValueError, match="more than a fifth of the 50 episodes of an update, received 10"):
        AdaptiveKL(target=1.0, horizon=10.0).updated(0.1, 0.0, 50)
    with pytest.raises(ValueError, match="beta: expected a number > 0"):
        AdaptiveKL(target=1.0, horizon=100.0).updated(0.0, 9.0, 10)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"missing_eos_penalty": 1.0}, r"missing_eos_penalty 0.0 \(here 1.0\)"),
        ({"overlong_penalty": 1.0, "overlong_cache": 2}, r"overlong None \(here \[1.0, 2\]\)"),
        ({"score_scaler": ScoreScaler(limit=2.0)}, r"score_scaler None \(here \[False, 2.0\]\)"),
        ({"kl_controller": AdaptiveKL(target=1.0, horizon=50.0)}, r"kl_controller None \(here \['AdaptiveKL'"),
    ],
)
def test_a_state_of_rollouts_that_were_paid_otherwise_is_refused(other, said):
    state = TextCollector(envs_of()).state_dict()
    with pytest.raises(ValueError, match=said):
        TextCollector(envs_of(), **other).load_state_dict(state)
    TextCollector(envs_of()).load_state_dict(state)


def test_slots_change_nothing_of_a_rollout_and_reach_whoever_writes():
    policy = policy_of()
    whole, slotted = (
        TextCollector(envs_of(), seed=1, max_concurrent_rows=max_concurrent_rows) for max_concurrent_rows in (None, 3)
    )
    for _ in range(2):  # the second rollout shows that the generators ended alike
        (expected, _), (found, _) = whole.collect(policy), slotted.collect(policy)
        assert found.actions.equal(expected.actions)
        for name in ("logprobs", "values", "rewards"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="max_concurrent_rows: expected 1 or more"):
        TextCollector(envs_of(), max_concurrent_rows=0)
