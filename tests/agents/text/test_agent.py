"""PPO, GRPO, RLOO and REINFORCE on text: judged by hand, ratio one, microbatches, one KL, resume (P2, P13, T13, S2)."""

import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from agents.functional import kl
from agents.functional.advantages import generalized_advantages
from agents.functional.masked import whiten
from agents.functional.schedules import Linear
from agents.lm.causal_lm import CausalLMPolicy
from agents.runs.checkpoint import CheckpointError
from agents.text import agent as text_agent
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import TextAgentConfig
from agents.text.kl_controllers import AdaptiveKL, AnnealedKL
from agents.text.objective import text_objective
from agents.text.presets import learning_rate_for, preset_settings
from agents.text.score_scaling import ScoreScaler
from agents.update import update
from textenvs.envs.vector import TokenVectorEnv
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

V, EOS, T, ROWS, BETA = 13, 0, 5, 24, 0.05
IDS = dict(vocab_size=V, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS, initializer_range=0.2)
ALGORITHMS = ["ppo", "grpo", "rloo", "reinforce"]


def policy_of(kind, critic):
    torch.manual_seed(0)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=2, **IDS))
    else:
        config = LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=16, **IDS,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    return CausalLMPolicy(model, critic=critic)


class Scorer:
    """The number of 3s."""

    def score_tokens(self, prompts, completions):
        return (completions == 3).sum(1).astype(np.float32)


def agent_of(algorithm, kind="gpt2", rows=ROWS, collecting=None, beta=BETA, **options):
    settings = dict(minibatch_size=rows, learning_rate=1e-2) | (dict(value_coef=0.1) if algorithm == "ppo" else {})
    config = TextAgentConfig.for_algorithm(algorithm, **(settings | options))
    policy = policy_of(kind, "shared" if config.uses_critic else "none")
    start = copy.deepcopy(policy)

    def reference(prompts, completions):
        with torch.no_grad():
            return start.evaluate(torch.from_numpy(prompts), torch.from_numpy(completions)).logprobs

    prompts = [[1 + i % 5] * (1 + i % 3) for i in range(20)]
    envs = TokenVectorEnv(
        rows, prompts=prompts, eos_token_id=EOS, vocab_size=V, max_new_tokens=T, group_size=config.group_size
    )
    envs = KLShaping(PreferenceReward(envs, Scorer()), reference, beta, charge=config.kl_in != "loss")
    collector = TextCollector(envs, seed=2, dynamic_sampling=config.dynamic_sampling, **(collecting or {}))
    return TextAgent(config, policy, collector=collector, reference=start)


def rollout_of(agent):
    return agent.collector.collect(agent.policy)[0]


def test_grpo_compares_scores_within_groups_and_leaves_the_kl_to_the_loss():
    agent = agent_of("grpo", group_size=6)
    rollout = rollout_of(agent)
    rows = agent.collector.last
    assert (rollout.observations.view(4, 6, -1) == rollout.observations[::6, None]).all()
    scores = torch.from_numpy(rows.scores).view(4, 6)
    expected = ((scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)).view(-1, 1)
    batch = agent.compute_advantages(rollout)
    torch.testing.assert_close(batch.advantages, expected * rollout.mask)
    torch.testing.assert_close(batch.ref_logprobs, torch.from_numpy(rows.ref_logprobs))
    flat = (scores == scores[:, :1]).all(1).float().mean().item()
    assert agent.update(batch)["train/flat_groups"] == pytest.approx(flat)


def test_rloo_compares_score_less_kl_with_the_mean_of_the_others():
    agent = agent_of("rloo", group_size=3)
    with torch.no_grad():
        agent.policy.model.lm_head.weight.mul_(1.5)  # away from the reference
    rollout = rollout_of(agent)
    rows = agent.collector.last
    returns = rows.scores - BETA * rows.kl.sum(1)
    assert np.abs(rows.kl.sum(1)).max() > 0.1
    for i, advantage in enumerate(agent.compute_advantages(rollout).advantages[:, 0].tolist()):
        others = [j for j in range(3 * (i // 3), 3 * (i // 3) + 3) if j != i]
        assert advantage == pytest.approx(returns[i] - returns[others].mean(), abs=1e-5)


def test_reinforce_subtracts_the_baseline_it_was_told():
    def judged_twice(**options):
        agent = agent_of("reinforce", **options)
        return agent, agent.compute_advantages(rollout_of(agent)), agent.compute_advantages(rollout_of(agent))

    _, raw, _ = judged_twice(baseline="none")
    rewards = raw.advantages[:, 0]
    assert rewards.std() > 0.1
    _, batch, _ = judged_twice(baseline="batch")
    torch.testing.assert_close(batch.advantages, (rewards - rewards.mean())[:, None] * raw.mask)
    agent, moving, second = judged_twice(baseline="moving", baseline_decay=0.75)
    torch.testing.assert_close(moving.advantages, batch.advantages)  # the first batch has no past
    later = agent.collector.last.scores - BETA * agent.collector.last.kl.sum(1)
    torch.testing.assert_close(second.advantages[:, 0], torch.from_numpy(later) - rewards.mean(), atol=1e-5, rtol=1e-5)
    expected = 0.75 * float(rewards.mean()) + 0.25 * float(later.mean())
    assert agent.moving_baseline == pytest.approx(expected, abs=1e-6)


def test_reward_to_go_is_the_sum_from_the_token_on():
    agent = agent_of("reinforce", baseline="none", reward_to_go=True)
    rollout = rollout_of(agent)
    expected = rollout.rewards.flip(1).cumsum(1).flip(1) * rollout.mask
    torch.testing.assert_close(agent.compute_advantages(rollout).advantages, expected)


def test_actor_and_critic_may_look_along_the_text_by_lambdas_of_their_own():
    agent = agent_of("ppo", lam=0.5, critic_lam=1.0, whiten_rewards=True)
    torch.nn.init.normal_(agent.policy.value_head.weight)
    rollout = rollout_of(agent)
    batch = agent.compute_advantages(rollout)
    rewards = whiten(rollout.rewards, rollout.mask, shift_mean=False)
    gae = generalized_advantages(
        rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.ended,
        gamma=1.0, lam=0.5, mask=rollout.mask,
    )  # fmt: skip
    torch.testing.assert_close(batch.advantages, gae)
    monte_carlo = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(batch.returns[rollout.mask], monte_carlo[rollout.mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_learning_every_step_has_ratio_one_and_there_is_no_kl(algorithm, kind):
    agent = agent_of(algorithm, kind, learning_rate=0.0)
    agent.learn(ROWS)
    assert agent.metrics["train/approx_kl"] == pytest.approx(0.0, abs=1e-8)
    assert agent.metrics["train/clip_fraction"] == 0.0
    assert agent.metrics["rollout/kl_per_sequence"] == pytest.approx(0.0, abs=1e-5)
    assert (
        ("train/value_loss" in agent.metrics) == ("train/explained_variance" in agent.metrics) == (algorithm == "ppo")
    )
    if algorithm == "grpo":
        assert agent.metrics["train/kl_loss"] == pytest.approx(0.0, abs=1e-6)


def test_a_critic_is_neither_built_nor_asked_without_need(monkeypatch):
    def never(*args):
        raise AssertionError("a value was asked for")

    monkeypatch.setattr(CausalLMPolicy, "value_of", never)
    for algorithm in ("grpo", "rloo", "reinforce"):
        agent = agent_of(algorithm).learn(ROWS)
        assert not any("value" in name or "critic" in name for name in agent.policy.state_dict())


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
@pytest.mark.parametrize("estimator", ["k3", "full"])
def test_microbatches_of_ragged_rows_equal_the_whole_minibatch(average, estimator):
    def learned(microbatch_size):
        agent = agent_of(
            "grpo", epochs=2, minibatch_size=12, microbatch_size=microbatch_size, average=average, entropy_coef=0.01,
            kl_estimator=estimator, beta=1.0,
        )  # fmt: skip
        with torch.no_grad():
            agent.policy.model.lm_head.weight.mul_(1.5)
        batch = agent.compute_advantages(rollout_of(agent))
        assert len(set(batch.mask.sum(1).tolist())) > 2
        agent.optimizer = torch.optim.SGD(agent.policy.parameters(), lr=0.5)
        agent.update(batch)
        return parameters_of(agent)

    whole = learned(None)
    for size in (1, 5):
        torch.testing.assert_close(learned(size), whole, atol=1e-5, rtol=1e-5)


def test_microbatches_by_tokens_hold_as_many_rows_as_fit(monkeypatch):
    import agents.text.agent as text_agent

    def asked(**changed):
        agent, found = agent_of("grpo", group_size=6, **changed), []
        batch = agent.compute_advantages(rollout_of(agent))
        monkeypatch.setattr(text_agent, "update", lambda *args, **kw: found.append(args[3].microbatch_size) or {})
        agent.update(batch)
        return found[0], int(((batch.observations >= 0).sum(1) + (batch.actions >= 0).sum(1)).max())

    assert asked()[0] is None
    rows, longest = asked(microbatch_tokens=50)
    assert rows == 50 // longest > 1
    assert asked(microbatch_tokens=1)[0] == 1
    with pytest.raises(ValueError, match="microbatch_tokens and microbatch_size both"):
        agent_of("grpo", microbatch_tokens=50, microbatch_size=2)
    with pytest.raises(ValueError, match="microbatch_tokens"):
        agent_of("grpo", microbatch_tokens=0)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
def test_the_kl_in_the_loss_is_the_estimators_mean_times_beta(estimator):
    agent = agent_of("grpo", kl_estimator=estimator, average="token")
    with torch.no_grad():
        agent.policy.model.lm_head.weight.mul_(1.5)
    batch = agent.compute_advantages(rollout_of(agent))
    judged = agent.policy.evaluate(batch.observations, batch.actions, batch.mask, reference=agent.reference)
    ours, theirs = judged.logprobs[batch.mask], batch.ref_logprobs[batch.mask]
    known = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}
    expected = (judged.kl[batch.mask] if estimator == "full" else known[estimator](ours, theirs)).mean()
    assert expected.abs() > 1e-3
    priced, parts = text_objective(agent.config, clip=0.2, beta=0.7)(judged, batch, batch.mask)
    free, _ = text_objective(agent.config, clip=0.2, beta=0.0)(judged, batch, batch.mask)
    torch.testing.assert_close(parts["kl_loss"], expected)
    torch.testing.assert_close(priced - free, 0.7 * expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_newest_batch_can_be_looked_at_and_tokens_a_second_are_its_tokens(algorithm):
    agent = agent_of(algorithm)
    assert agent.newest is None
    agent.learn(ROWS)
    rollout, batch = agent.newest
    assert torch.equal(batch.actions, torch.from_numpy(agent.collector.last.completions))
    assert torch.equal(batch.old_logprobs, rollout.logprobs)
    seconds = ROWS / agent.metrics["time/steps_per_second"]
    assert agent.metrics["time/tokens_per_second"] == pytest.approx(int(batch.mask.sum()) / seconds)
    assert agent.metrics["train/advantage_mean"] == pytest.approx(float(batch.advantages[batch.mask].mean()), abs=1e-5)
    assert ("train/return_mean" in agent.metrics) == (algorithm == "ppo")


def test_while_the_critic_warms_up_the_actor_rests():
    agent = agent_of("ppo", critic_warmup=1)
    head = lambda: copy.deepcopy(agent.policy.value_head.state_dict())  # noqa: E731
    start, values = copy.deepcopy(agent.policy.model.state_dict()), head()
    agent.iterate()
    assert all(torch.equal(start[name], tensor) for name, tensor in agent.policy.model.state_dict().items())
    assert any(not torch.equal(values[name], tensor) for name, tensor in head().items())
    assert all(parameter.requires_grad for parameter in agent.policy.actor_parameters())
    agent.iterate()
    assert any(not torch.equal(start[name], tensor) for name, tensor in agent.policy.model.state_dict().items())
    with pytest.raises(ValueError, match="critic_warmup: expected a number >= 0, received -1"):
        TextAgentConfig(critic_warmup=-1)


def test_padding_may_hold_anything():
    agent = agent_of("grpo", kl_estimator="k3", average="sequence")
    batch = agent.compute_advantages(rollout_of(agent))
    judged = agent.policy.evaluate(batch.observations, batch.actions, batch.mask)
    objective = text_objective(agent.config, clip=0.2, beta=0.7)
    expected, _ = objective(judged, batch, batch.mask)
    poisoned = {
        name: getattr(batch, name).masked_fill(~batch.mask, float("nan"))
        for name in ("old_logprobs", "advantages", "ref_logprobs")
    }
    torch.testing.assert_close(objective(judged, type(batch)(**(vars(batch) | poisoned)), batch.mask)[0], expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_whatever_padding_was_paid_judges_no_text(algorithm):
    agent = agent_of(algorithm, **({"reward_to_go": True} if algorithm == "reinforce" else {}))
    rollout = rollout_of(agent)
    assert not rollout.mask.all()
    expected = agent.compute_advantages(rollout).advantages
    rewards = rollout.rewards.masked_fill(~rollout.mask, float("nan"))
    poisoned = dataclasses.replace(rollout, rewards=rewards)
    torch.testing.assert_close(agent.compute_advantages(poisoned).advantages, expected, rtol=0, atol=0)


def test_an_entropy_bonus_lowers_the_loss_by_the_mean_entropy():
    batch, judged = stray_batch(plain := agent_of("ppo"))
    bonus = text_objective(dataclasses.replace(plain.config, entropy_coef=0.3), clip=0.2, beta=0.0)
    free = text_objective(plain.config, clip=0.2, beta=0.0)
    expected = -0.3 * judged.entropy[batch.mask].mean()
    torch.testing.assert_close(bonus(judged, batch, batch.mask)[0] - free(judged, batch, batch.mask)[0], expected)


@pytest.mark.parametrize("options", [{"clip_high": 0.5}, {"dual_clip": 2.0}])
def test_clip_higher_and_dual_clip_reach_the_loss(options):
    batch, judged = stray_batch(plain := agent_of("grpo"))
    config = dataclasses.replace(plain.config, average="token", kl_in="reward", **options)
    ratio = (judged.logprobs - batch.old_logprobs)[batch.mask].exp()
    advantage = batch.advantages[batch.mask]
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1 + options.get("clip_high", 0.2)) * advantage)
    if "dual_clip" in options:
        gain = torch.where(advantage < 0, gain.clamp(min=2.0 * advantage), gain)
    total, _ = text_objective(config, clip=0.2, beta=0.0)(judged, batch, batch.mask)
    torch.testing.assert_close(total, -gain.mean())
    assert ((ratio > 2) & (advantage < 0)).any()
    assert ((ratio > 1.5) & (advantage > 0)).any()


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
def test_tokens_are_averaged_as_the_setting_says(average):
    batch, judged = stray_batch(plain := agent_of("rloo"))
    config = dataclasses.replace(plain.config, average=average)
    gains = judged.logprobs * batch.advantages * batch.mask
    lengths = batch.mask.sum(1)
    assert lengths.min() < lengths.max()
    expected = {
        "token": gains.sum() / lengths.sum(),
        "sequence": (gains.sum(1) / lengths).mean(),
        "constant": gains.sum() / (ROWS * T),
    }
    total, _ = text_objective(config, clip=0.2, beta=0.0)(judged, batch, batch.mask)
    torch.testing.assert_close(total, -expected[average])


@pytest.mark.parametrize("name", ["clipped", "gspo", "cispo"])
def test_the_policy_loss_is_the_one_that_was_named_with_its_interval(name):
    batch, judged = stray_batch(plain := agent_of("grpo"))
    config = dataclasses.replace(plain.config, policy_loss=name, clip_high=0.4)
    total, _ = text_objective(config, clip=0.1, beta=0.0)(judged, batch, batch.mask)
    (found,) = torch.autograd.grad(total, judged.logprobs)
    gap = (judged.logprobs.detach() - batch.old_logprobs) * batch.mask
    if name == "gspo":
        gap = (gap.sum(1) / batch.mask.sum(1))[:, None].expand_as(gap)
    ratio, advantages = gap.exp(), batch.advantages
    weight = ratio.clamp(0.9, 1.4)
    assert (weight != ratio).any()
    if name != "cispo":  # the surrogate has no gradient where the clip makes it smaller
        weight = ratio * (ratio * advantages <= weight * advantages)
    expected = -weight * advantages * batch.mask / batch.mask.sum(1, keepdim=True) / ROWS
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def stray_batch(agent):
    """A batch, and what a policy says of it that has moved far from the one that wrote it."""
    batch = agent.compute_advantages(rollout_of(agent))
    with torch.no_grad():
        agent.policy.model.lm_head.weight.mul_(-3.0)
    return batch, agent.policy.evaluate(batch.observations, batch.actions, batch.mask)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_kl_that_the_reward_charges_is_not_charged_by_the_loss_as_well(algorithm):
    agent = agent_of(algorithm, kl_in="reward")
    with torch.no_grad():
        agent.policy.model.lm_head.weight.mul_(1.5)
    batch = agent.compute_advantages(rollout_of(agent))
    assert batch.ref_logprobs is not None
    judged = agent.policy.evaluate(batch.observations, batch.actions, batch.mask)
    losses = [text_objective(agent.config, clip=0.2, beta=beta)(judged, batch, batch.mask)[0] for beta in (0.0, 9.0)]
    assert torch.equal(*losses)


def test_the_plain_gradient_equals_the_clipped_ones_at_ratio_one():
    def gradient(policy_loss):
        agent = agent_of("rloo", policy_loss=policy_loss, learning_rate=0.0, max_grad_norm=1e9)
        agent.iterate()
        return torch.cat([p.grad.flatten() for p in agent.policy.parameters()])

    torch.testing.assert_close(gradient("plain"), gradient("clipped"), atol=1e-6, rtol=1e-4)


def parameters_of(agent):
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


def everything(algorithm):
    """Each algorithm with options that carry state of their own."""
    collecting = {
        "ppo": lambda: {"kl_controller": AdaptiveKL(target=0.1, horizon=60.0)},
        "grpo": lambda: {
            "score_scaler": ScoreScaler(standardize=True, limit=2.0),
            "kl_controller": AnnealedKL(start=0.9, end=0.3, horizon=3.0 * ROWS),
        },
        "rloo": lambda: {"score_scaler": ScoreScaler(limit=2.0), "overlong_penalty": 0.5},
        "reinforce": lambda: {"missing_eos_penalty": 0.5},
    }[algorithm]()
    options = {
        "ppo": {"critic_lam": 1.0},
        "grpo": {
            "kl_estimator": "full", "epochs": 2, "minibatch_size": 8, "clip_high": 0.3, "dual_clip": 3.0,
            "group_size": 2, "dynamic_sampling": 2,
        },
        "rloo": {},
        "reinforce": {"baseline": "moving", "normalize_advantages": "batch"},
    }[algorithm]  # fmt: skip
    return agent_of(algorithm, collecting=collecting, **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_saved_and_restored_training_ends_where_undisturbed_training_ends(algorithm, tmp_path):
    undisturbed = everything(algorithm).learn(4 * ROWS)
    half = everything(algorithm)
    half.learn(4 * ROWS, callback=lambda agent: agent.updates < 2)
    half.save(tmp_path / "half.safetensors")
    resumed = everything(algorithm)
    with torch.no_grad():
        next(resumed.policy.parameters()).add_(1.0)
    resumed.restore(tmp_path / "half.safetensors").learn()
    assert resumed.steps == 4 * ROWS
    assert torch.equal(parameters_of(resumed), parameters_of(undisturbed))
    assert resumed.moving_baseline == undisturbed.moving_baseline
    other = everything("rloo" if algorithm != "rloo" else "grpo")
    with pytest.raises(CheckpointError, match=f"algorithm='{algorithm}'"):
        other.restore(tmp_path / "half.safetensors")


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        ("grpo", "llama"),
        ("rloo", "gpt2"),
        pytest.param("reinforce", "gpt2", marks=pytest.mark.slow),
        pytest.param("grpo", "gpt2", marks=pytest.mark.slow),
        pytest.param("rloo", "llama", marks=pytest.mark.slow),
        ("reinforce", "llama"),
    ],
)
def test_it_learns_to_say_what_is_paid_for(algorithm, kind):
    agent = agent_of(algorithm, kind, rows=48, learning_rate=2e-2)
    scores = []
    agent.learn(48 * 15, callback=lambda agent: scores.append(agent.metrics["rollout/score"]))
    assert scores[0] < 0.8
    assert np.mean(scores[-3:]) > 2.0
    assert agent.metrics["rollout/kl_per_sequence"] > 0.5


def test_scores_are_standardized_by_all_that_was_seen_and_clipped():
    scaler = ScoreScaler(standardize=True, limit=1.0)
    first, second = np.float32([1, 3]), np.float32([5, 11])
    np.testing.assert_allclose(scaler(first), [-1, 1])
    everything = np.float32([1, 3, 5, 11])
    np.testing.assert_allclose(scaler(second), ((second - everything.mean()) / everything.std()).clip(-1, 1), rtol=1e-6)
    np.testing.assert_allclose(ScoreScaler(limit=2.0)(np.float32([-9, 1.5])), [-2, 1.5])
    agent = agent_of("rloo", collecting={"score_scaler": ScoreScaler(limit=0.5)})
    rollout = rollout_of(agent)
    rows = agent.collector.last
    assert rows.scores.max() > 0.5
    paid = rollout.rewards.sum(1).numpy() + BETA * rows.kl.sum(1)
    np.testing.assert_allclose(paid, rows.scores.clip(-0.5, 0.5), atol=1e-5)
    for bad in ({}, {"limit": 0.0}):
        with pytest.raises(ValueError, match="limit"):
            ScoreScaler(**bad)


@pytest.mark.parametrize(
    ("algorithm", "options", "said"),
    [
        ("dpo", {}, "algorithm: expected one of ppo, grpo, rloo, reinforce"),
        ("grpo", {"group_size": 1}, "group_size: expected 2 or more for grpo"),
        ("grpo", {"critic_lam": 0.9}, "critic_lam needs a critic"),
        ("grpo", {"value_clip": 0.2}, "value_clip needs a critic"),
        ("grpo", {"gamma": 0.9}, "gamma: expected 1 for grpo"),
        ("rloo", {"normalize_std": True}, "normalize_std needs GRPO"),
        ("rloo", {"clip_high": 0.3}, "clip_high needs a clipped loss"),
        ("rloo", {"epochs": 2}, "one pass over a batch, received epochs 2"),
        ("ppo", {"baseline": "batch"}, "baseline needs REINFORCE"),
        ("ppo", {"reward_to_go": True}, "reward_to_go needs REINFORCE"),
        ("ppo", {"whiten_shift_mean": True}, "whiten_shift_mean needs whiten_rewards"),
        ("ppo", {"dual_clip": 0.9}, r"dual_clip: expected more than 1 \+ clip = 1.2, received 0.9"),
        ("ppo", {"critic_lam": 1.5}, "critic_lam: expected"),
        ("ppo", {"clip_high": -0.1}, "clip_high: expected a number >= 0"),
        ("ppo", {"kl_in": "both ways"}, "kl_in: expected one of reward, loss, both"),
        ("reinforce", {"whiten_rewards": True}, "whiten_rewards needs a critic"),
        ("reinforce", {"baseline_decay": 1.0}, "baseline_decay: expected"),
        ("reinforce", {"baseline_decay": 0.5}, "baseline_decay needs the moving baseline"),
        ("ppo", {"dual_clip": 1.25, "clip_high": 0.3}, r"dual_clip: expected more than 1 \+ clip = 1.3, received 1.25"),
        ("ppo", {"kl_estimator": "full"}, "kl_estimator needs a KL in the loss"),
        ("ppo", {"kl_estimator": "k3"}, "kl_estimator needs a KL in the loss"),
        ("grpo", {"lam": 0.9}, "lam needs a critic"),
        ("grpo", {"value_coef": 0.9}, "value_coef needs a critic"),
        ("rloo", {"clip": 0.1}, "clip needs a clipped loss"),
        ("gspo", {"dual_clip": 3.0}, "dual_clip needs the clipped loss"),
        ("cispo", {"dual_clip": 9.0}, "dual_clip needs the clipped loss"),
        ("ppo", {"dynamic_sampling": 2}, "dynamic_sampling needs GRPO or RLOO"),
        ("reinforce++", {"dynamic_sampling": 2}, "dynamic_sampling needs GRPO or RLOO"),
        ("dapo", {"dynamic_sampling": -1}, "dynamic_sampling: expected a number >= 0, received -1"),
        ("dapo", {"group_size": 1}, "group_size: expected 2 or more for grpo"),
        ("dapo", {"reward_to_go": True}, "reward_to_go needs REINFORCE"),
        ("cispo", {"policy_loss": "sispo"}, "policy_loss: expected one of clipped, plain, gspo, cispo"),
    ],
)
def test_what_does_not_apply_is_refused_with_the_reason(algorithm, options, said):
    with pytest.raises(ValueError, match=said):
        TextAgentConfig.for_algorithm(algorithm, **options)


def test_settings_of_control_tasks_are_no_settings_of_text():
    with pytest.raises(TypeError, match="num_steps"):
        TextAgentConfig(num_steps=5)


def test_a_preset_is_over_the_paper_and_under_what_is_changed():
    grpo = TextAgentConfig(**preset_settings("grpo", {"clip": 0.3}))
    assert (grpo.kl_in, grpo.normalize_std, grpo.group_size, grpo.clip) == ("reward", False, 8, 0.3)
    asked = TextAgentConfig(**preset_settings("grpo", {"kl_estimator": "full"}))
    assert (asked.kl_in, asked.kl_estimator) == ("loss", "full")
    assert TextAgentConfig(**preset_settings("rloo", {})).minibatch_size is None
    with pytest.raises(ValueError, match=r"expected one of ppo, grpo, rloo, reinforce, dr_grpo, .*, received 'dpo'"):
        preset_settings("dpo", {})


PAPERS_BY_HAND = {
    # name: (algorithm, loss, average, eps below, eps above, divided by the deviation, whitened, KL in, group, draws)
    "dr_grpo": ("grpo", "clipped", "constant", 0.2, None, False, "none", "reward", 8, 0),
    "dapo": ("grpo", "clipped", "token", 0.2, 0.28, True, "none", "reward", 16, 9),
    "gspo": ("grpo", "gspo", "sequence", 3e-4, 4e-4, True, "none", "reward", 8, 0),
    "cispo": ("grpo", "cispo", "token", 1.0, 4.0, True, "none", "reward", 8, 0),
    "reinforce++": ("reinforce", "clipped", "token", 0.2, None, False, "batch", "reward", 1, 0),
    "reinforce++_baseline": ("grpo", "clipped", "token", 0.2, None, False, "batch", "loss", 8, 0),
}


@pytest.mark.parametrize("name", PAPERS_BY_HAND)
def test_a_name_stands_for_its_papers_settings_and_the_preset_keeps_them(name):
    for config in (TextAgentConfig.for_algorithm(name), TextAgentConfig(**preset_settings(name, {}))):
        found = (
            config.algorithm, config.policy_loss, config.average, config.clip, config.clip_high, config.normalize_std,
            config.normalize_advantages, config.kl_in, config.group_size, config.dynamic_sampling,
        )  # fmt: skip
        assert found == PAPERS_BY_HAND[name]
        assert config.epochs == 1
    assert TextAgentConfig.for_algorithm("reinforce++").reward_to_go
    assert TextAgentConfig.for_algorithm("grpo").epochs == 1  # a single update a batch (section 4.2)
    assert TextAgentConfig.for_algorithm("reinforce++_baseline").kl_estimator == "k2"
    assert TextAgentConfig.for_algorithm(name, epochs=3).epochs == 3


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("dapo", "dr_grpo"))) for name in PAPERS_BY_HAND]
)
def test_each_name_learns_to_say_what_is_paid_for(name):
    settings = dict(minibatch_size=12, learning_rate=1e-2) | ({} if name == "reinforce++" else {"group_size": 8})
    agent = agent_of(name, rows=48, beta=0.01, **settings)
    scores = []
    agent.learn(48 * 20, callback=lambda agent: scores.append(agent.metrics["rollout/score"]))
    assert scores[0] < 0.8
    assert np.mean(scores[-3:]) > 2.0


def test_reinforce_plus_plus_charges_each_token_with_the_kl_from_it_on_and_whitens_over_the_batchs_tokens(monkeypatch):
    def seen(name, **options):
        agent = agent_of(name, learning_rate=0.0, **options)
        with torch.no_grad():
            agent.policy.model.lm_head.weight.mul_(1.5)  # away from the reference
        batch = agent.compute_advantages(rollout_of(agent))
        learned = []
        original = text_agent.update
        monkeypatch.setattr(text_agent, "update", lambda *given, **named: learned.append(given) or {})
        agent.update(batch)
        monkeypatch.setattr(text_agent, "update", original)
        assert learned[0][3].normalize_advantages == "batch"
        rows = agent.collector.last
        return batch, rows, rows.mask

    batch, rows, mask = seen("reinforce++")
    for row in range(ROWS):
        for t in np.flatnonzero(mask[row]):
            expected = rows.scores[row] - BETA * rows.kl[row, t:].sum()  # eq. 4
            assert batch.advantages[row, t].item() == pytest.approx(expected, abs=1e-5)
    batch, rows, mask = seen("reinforce++_baseline")  # the KL is in its loss
    groups = rows.scores.reshape(-1, 8)
    expected = (groups - groups.mean(1, keepdims=True)).reshape(-1, 1) * mask  # eq. 6
    np.testing.assert_allclose(batch.advantages.numpy(), expected, atol=1e-6)


def test_gspos_clip_fraction_is_of_texts_and_its_first_step_is_the_plain_gradients():
    agent = agent_of("gspo", learning_rate=0.0, group_size=4)
    batch = agent.compute_advantages(rollout_of(agent))
    assert agent.update(batch)["train/clip_fraction"] == 0.0
    length = batch.mask.sum(1, keepdim=True)
    shift = torch.zeros(ROWS, 1)
    shift[:3] = 0.1 * length[:3]  # one token's log-ratio, so that the text's mean is 0.1
    first = torch.arange(batch.mask.shape[1]) == 0
    moved = dataclasses.replace(batch, old_logprobs=batch.old_logprobs - shift * first)
    assert agent.update(moved)["train/clip_fraction"] == pytest.approx(3 / ROWS)
    assert agent.update(moved)["train/ratio_max"] == pytest.approx(float((0.1 * length[:3]).exp().max()), rel=1e-4)


def test_an_agent_predicts_tokens_for_what_the_environment_shows():
    agent = agent_of("ppo")
    envs = agent.collector.base
    observations, _ = envs.reset(seed=0)
    tokens, _ = agent.predict(observations, deterministic=True)
    rows = [torch.tensor(row[row >= 0])[None] for row in observations]
    likeliest = [agent.policy.model(input_ids=row).logits[0, -1].argmax().item() for row in rows]
    assert tokens.tolist() == likeliest
    assert agent.predict(observations[3], deterministic=True)[0] == likeliest[3]
    envs.step(agent.predict(observations)[0])
    for wrong in ("the film", [0.5, 1.2], [[[1]]], []):
        with pytest.raises(ValueError, match=r"observation: expected token ids .* received"):
            agent.predict(wrong)


def test_an_agent_whose_parts_disagree_is_refused():
    def refused(said, algorithm="grpo", policy=None, reference=None, collector=None, **options):
        agent = agent_of(algorithm)
        with pytest.raises(ValueError, match=said):
            TextAgent(
                TextAgentConfig.for_algorithm(algorithm, minibatch_size=ROWS, **options), policy or agent.policy,
                collector=collector or agent.collector, reference=reference,
            )  # fmt: skip

    refused("group_size: expected 4 in the environment", group_size=4)
    refused("dynamic_sampling: expected 2 in the collector, as configured, received 0", dynamic_sampling=2)
    refused("never charge the KL", kl_in="reward")
    refused("charge the KL twice", kl_in="loss", collector=agent_of("grpo", kl_in="reward").collector)
    refused("reference: expected a policy", kl_estimator="full")
    refused("expected a policy without a critic", policy=policy_of("gpt2", "shared"))
    refused("expected a policy with a critic", "ppo", policy=policy_of("gpt2", "none"))
    agent = agent_of("rloo")
    with pytest.raises(ValueError, match="minibatch_size: expected 24 or more"):
        TextAgent(TextAgentConfig.for_algorithm("rloo", minibatch_size=8), agent.policy, collector=agent.collector)
    both = agent_of("grpo", kl_in="both")
    assert both.collector.charges_kl
    both.learn(ROWS)
    assert "train/kl_loss" in both.metrics


def test_the_update_is_ppos_own_where_the_settings_are():
    """The composed objective with PPO's defaults against ``agents.update.ppo_objective``: bit for bit."""

    def learned(objective):
        agent = agent_of("ppo", minibatch_size=8)
        batch = agent.compute_advantages(rollout_of(agent))
        update(
            agent.policy, agent.optimizer, batch, agent.config, clip=0.2,
            generator=torch.Generator().manual_seed(0), objective=objective,
        )  # fmt: skip
        return parameters_of(agent)

    composed = text_objective(TextAgentConfig.for_algorithm("ppo", value_coef=0.1), clip=0.2, beta=0.0)
    assert torch.equal(learned(composed), learned(None))


def test_every_setting_reaches_the_optimizer():
    agent = agent_of("ppo", adam_eps=1e-6, adam_beta1=0.8, adam_beta2=0.95, weight_decay=0.1)
    (group,) = agent.optimizer.param_groups
    assert (group["eps"], group["betas"], group["weight_decay"]) == (1e-6, (0.8, 0.95), 0.1)
    assert isinstance(agent.optimizer, torch.optim.AdamW)
    assert TextAgentConfig().adam_eps == 1e-8


def test_a_step_of_adam_is_the_learning_rate_however_small_the_gradient():
    """A first step is lr x g / (|g| + eps): with eps 1e-5 a gradient of 1e-6 would get a tenth of it."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, eps=TextAgentConfig().adam_eps, weight_decay=0.0)
    (1e-6 * weight).backward()
    optimizer.step()
    assert 1 - weight.item() == pytest.approx(1e-3 / 1.01, rel=1e-3)


def test_the_learning_rate_rises_over_the_first_updates():
    agent = agent_of("rloo", group_size=3, warmup_updates=3, learning_rate=Linear(0.4, 0.4))
    rates = []
    for _ in range(5):
        agent.iterate()
        rates.append(agent.metrics["train/learning_rate"])
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


@pytest.mark.parametrize(
    "options",
    [{"adam_eps": 0.0}, {"adam_beta1": 1.0}, {"adam_beta2": -0.1}, {"weight_decay": -1.0}, {"warmup_updates": -1}],
)
def test_settings_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}: expected a number"):
        TextAgentConfig(**options)


def test_larger_models_take_smaller_steps_and_adapters_ten_times_as_large_ones():
    assert learning_rate_for("ppo", 2_400_000) == Linear(4e-4)
    assert learning_rate_for("ppo", 135_000_000) == Linear(1e-5)
    assert learning_rate_for("ppo", 135_000_000, adapters=True) == Linear(1e-4)
    assert learning_rate_for("grpo", 8_000_000_000) == Linear(1e-6)
    assert learning_rate_for("rloo", 1_000_000, adapters=True) == Linear(1e-3)


def test_a_start_that_runs_away_is_warned_of_once():
    agent = agent_of("ppo", learning_rate=0.5, beta=0.0)
    agent.iterate()
    with pytest.warns(UserWarning, match=r"nats per sequence from the reference: learning_rate 0.5 is"):
        agent.iterate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.iterate()
        slow = agent_of("ppo", learning_rate=1e-4)
        slow.iterate()
        slow.iterate()
