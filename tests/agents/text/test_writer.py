"""Texts by an engine, and a batch ahead: the same bits where nothing differs, staleness that is kept and bounded."""

import copy
import threading
import warnings
from functools import partial

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents.engines.local import LocalEngine
from agents.engines.protocol import EngineError
from agents.functional.correction import importance_weights
from agents.interfaces import Evaluation
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.lora import AdaptedTrunk, LoraOptions
from agents.rollout import Batch
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import TextAgentConfig
from agents.text.objective import text_objective
from textenvs.envs.vector import TokenVectorEnv
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

V, EOS, T = 17, 0, 5


def policy_of(seed=0, critic="shared"):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=V, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4,
        bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS,
    )  # fmt: skip
    return CausalLMPolicy(GPT2LMHeadModel(config), critic=critic)


class CountsThrees:
    def score_tokens(self, prompts, completions):
        return (completions == 3).sum(1)


def envs_of(num_envs=8, beta=0.1):
    envs = TokenVectorEnv(
        num_envs, prompts=[[1, 2], [3], [2, 4, 5]], eos_token_id=EOS, vocab_size=V, max_new_tokens=T, group_size=2
    )
    frozen = policy_of(seed=7)

    def reference(prompts, completions):
        return frozen.completion_logprobs(torch.from_numpy(prompts), torch.from_numpy(completions))

    return KLShaping(PreferenceReward(envs, CountsThrees()), reference, beta)


def agent_of(algorithm="ppo", policy=None, settings=(), **options):
    chosen = {"learning_rate": 1e-3, "minibatch_size": 8, "group_size": 2, "kl_in": "reward", "kl_estimator": None}
    config = TextAgentConfig.for_algorithm(algorithm, **(chosen | dict(settings)))
    policy = policy_of(critic="shared" if config.uses_critic else "none") if policy is None else policy
    return TextAgent(config, policy, TextCollector(envs_of(), seed=1, **options))


def iterated(agent, count):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a small model strays at once
        for _ in range(count):
            agent.iterate()
    return agent


def equal(one, other):
    ours, theirs = one.policy.state_dict(), other.policy.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def untimed(metrics, *left_out):
    return {name: each for name, each in metrics.items() if not name.startswith(("time/", *left_out))}


OF_ENGINES = ("rollout/mismatch", "rollout/effective", "rollout/share_corrected", "rollout/staleness")


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_a_local_engine_with_a_copy_of_the_weights_is_the_policy_itself_bit_for_bit(algorithm):
    plain, engined = agent_of(algorithm), agent_of(algorithm)
    engine = LocalEngine(copy.deepcopy(engined.policy), generate)
    engined = agent_of(algorithm, engine=engine, correction="none")
    for updates in range(3):
        iterated(plain, 1)
        iterated(engined, 1)
        assert torch.equal(plain.newest[0].actions, engined.newest[0].actions)
        assert untimed(plain.metrics) == untimed(engined.metrics, *OF_ENGINES)
        assert engined.metrics["rollout/mismatch_max"] == 0
        assert set(engined.newest[0].versions.flatten().tolist()) == {updates}
    assert equal(plain, engined)


def test_without_a_stale_batch_async_rollouts_are_the_synchronous_run_bit_for_bit():
    plain, bounded = iterated(agent_of(), 3), iterated(agent_of(async_rollouts=0), 3)
    assert equal(plain, bounded)
    # the first batch of an asynchronous run is by the same weights, and so is its update
    ahead = iterated(agent_of(async_rollouts=1, correction="none"), 1)
    assert equal(iterated(agent_of(), 1), ahead)


def adapted():
    trunk = AdaptedTrunk(policy_of().model, LoraOptions(rank=2), value=True)
    return CausalLMPolicy(trunk.model, critic="adapter", adapters=trunk)


@pytest.mark.parametrize("make", [policy_of, partial(policy_of, critic="separate"), adapted])
def test_the_next_batch_is_written_by_the_weights_before_the_update_and_its_staleness_is_kept(make):
    agent, weights = agent_of(policy=make(), settings={"learning_rate": 1e-2}, async_rollouts=1), []
    for updates in range(3):
        weights.append(copy.deepcopy(agent.policy))
        iterated(agent, 1)
        rollout = agent.newest[0]
        writer = weights[max(updates - 1, 0)]
        own, old = (each.completion_logprobs(rollout.observations, rollout.actions) for each in (writer, weights[-1]))
        torch.testing.assert_close(rollout.behavior_logprobs, own, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(rollout.logprobs, old, atol=1e-5, rtol=1e-4)
        values = weights[-1].completion_values(rollout.observations, rollout.actions)
        torch.testing.assert_close(rollout.values, values, atol=1e-5, rtol=1e-4)
        assert agent.metrics["rollout/staleness"] == min(updates, 1)
        assert (agent.metrics["rollout/mismatch_mean"] > 1e-4) == (updates > 0)
        expected, _ = importance_weights(old, own, rollout.mask, mode="sequence_truncate", low=0.0, high=3.0)
        torch.testing.assert_close(agent.newest[1].weights, expected, atol=1e-4, rtol=1e-3)


def test_the_kl_is_charged_on_the_policys_own_logprobs():
    agent = iterated(agent_of(async_rollouts=1), 2)
    rows, rollout = agent.collector.last, agent.newest[0]
    kl = torch.from_numpy(rows.kl)
    torch.testing.assert_close(kl, (rollout.logprobs - rollout.ref_logprobs) * rollout.mask, atol=1e-6, rtol=1e-5)
    assert (rollout.behavior_logprobs - rollout.logprobs).abs().max() > 1e-4


def test_the_weights_scale_each_steps_term_of_the_policys_and_the_kls_loss():
    torch.manual_seed(0)
    logprobs = torch.randn(3, 4).sub(2).requires_grad_()
    shape, mask = torch.zeros(3, 4), torch.ones(3, 4, dtype=torch.bool)
    weights, advantages, ref = torch.rand(3, 4) * 2, torch.randn(3, 4), torch.randn(3, 4) - 2
    old = logprobs.detach() + 0.3 * torch.randn(3, 4)
    batch = Batch(
        observations=shape, actions=shape, old_logprobs=old, old_values=shape, advantages=advantages, returns=shape,
        mask=mask, ref_logprobs=ref, weights=weights,
    )  # fmt: skip
    config = TextAgentConfig.for_algorithm(
        "rloo", policy_loss="clipped", kl_in="loss", kl_estimator="k2", average="token"
    )
    evaluation = Evaluation(logprobs, shape, shape)
    loss, _ = text_objective(config, clip=0.2, beta=0.5)(evaluation, batch, mask)
    ratio = (logprobs - old).exp()
    term = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    expected = (-weights * term + 0.5 * weights * (logprobs - ref) ** 2 / 2).mean()
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(each, logprobs, retain_graph=True)[0] for each in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_the_next_batch_is_written_while_the_policy_learns():
    learning, written = threading.Event(), threading.Event()
    calls = []

    def patient(*arguments, **options):
        calls.append(threading.current_thread())
        if len(calls) > 1:
            assert learning.wait(10)
        found = generate(*arguments, **options)
        if len(calls) > 1:
            written.set()
        return found

    agent = agent_of(async_rollouts=1, generate=patient)
    update = agent.update

    def overlapping(batch):
        learning.set()
        assert written.wait(10)  # before the update ends
        return update(batch)

    agent.update = overlapping
    iterated(agent, 1)
    assert calls[0] is threading.main_thread()
    assert calls[1] is not threading.main_thread()


@pytest.mark.parametrize("options", [{}, {"correction": "none"}, {"dynamic_sampling": 2}])
def test_a_resumed_asynchronous_run_ends_where_an_undisturbed_one_does(tmp_path, options):
    algorithm = "rloo" if "dynamic_sampling" in options else "ppo"
    settings = {"dynamic_sampling": 2} if "dynamic_sampling" in options else {}
    undisturbed = iterated(agent_of(algorithm, settings=settings, async_rollouts=1, **options), 4)
    stopped = iterated(agent_of(algorithm, settings=settings, async_rollouts=1, **options), 2)
    stopped.save(tmp_path / "agent.safetensors")
    resumed = agent_of(algorithm, settings=settings, async_rollouts=1, **options)
    resumed.policy.load_state_dict(policy_of(seed=9, critic=resumed.policy.critic).state_dict())
    resumed.restore(tmp_path / "agent.safetensors")
    iterated(resumed, 2)
    assert resumed.metrics["rollout/staleness"] == undisturbed.metrics["rollout/staleness"] > 0
    assert equal(undisturbed, resumed)


def test_a_batch_that_is_too_stale_is_written_anew():
    agent = iterated(agent_of(async_rollouts=1), 2)
    agent.collector.writer.version += 1
    iterated(agent, 1)
    assert agent.metrics["rollout/staleness"] == 0


def test_a_fault_in_the_background_is_raised_by_the_next_rollout_and_training_goes_on():
    class Broken(LocalEngine):
        def generate(self, prompts, sampling):
            if threading.current_thread() is not threading.main_thread() and self.breaks.pop(0):
                raise EngineError("out of memory")
            return super().generate(prompts, sampling)

    engine = Broken(policy_of(), generate)
    engine.breaks = [False, True] + [False] * 8
    agent = iterated(agent_of(async_rollouts=1, engine=engine), 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        agent.iterate()
    iterated(agent, 2)
    assert agent.updates == 4


def test_what_cannot_be_written_ahead_is_refused():
    with pytest.raises(ValueError, match="async_rollouts: expected 0 or 1"):
        agent_of(async_rollouts=2)
    for settings, message in (
        ({"async_rollouts": 2}, "async_rollouts: expected a number in"),
        ({"correction": "token"}, "correction: expected one of|correction"),
        ({"correction_high": 0.5}, "correction_high: expected a number >= 1"),
        ({"correction": "token_truncate", "correction_low": 0.5}, "correction_low needs a correction by a mask"),
        ({"correction_high": 5.0}, "correction_high needs a correction"),
        ({"engine_folder": "x"}, "engine_folder needs an engine"),
    ):
        with pytest.raises(ValueError, match=message):
            TextAgentConfig(**settings)
