"""A vLLM server as an engine, against a small one that speaks its protocol: agreement, faults, updates, dialogues."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents.engines.protocol import EngineError, Sampling
from agents.engines.vllm import VLLMEngine
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.lora import AdaptedTrunk, LoraOptions
from agents.lm.sampling import TokenSampling
from agents.lm.saving import named_weights
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import TextAgentConfig
from textenvs.dialogues.vector import DialogueVectorEnv
from textenvs.envs.vector import TokenVectorEnv
from textenvs.tokens.rows import PAD
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

V, EOS, T = 17, 0, 6
PATH = "/inference/v1/generate"


def model_of(seed=0):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=V, n_positions=48, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4,
        bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS,
    )).eval()  # fmt: skip


def policy_of(seed=0, **options):
    return CausalLMPolicy(model_of(seed), **{"critic": "none", **options})


def prompts_of(count=8):
    rows = torch.full((count, 4), PAD)
    for i in range(count):
        rows[i, : 1 + i % 4] = torch.arange(1, 2 + i % 4) + i % 5
    return rows


def sampling_of(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return Sampling(**{"max_new_tokens": T, "eos_token_id": EOS, "generator": generator, **options})


def engine_of(fake, **options):
    return VLLMEngine(fake.url, **{"patience_s": 5.0, "timeout_s": 20.0, **options})


def loaded(fake, policy, version=0, **options):
    engine = engine_of(fake, **options)
    engine.update(named_weights(policy, adapter_only=engine.adapter_only), version)
    return engine


def same(one, other):
    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.logprobs, other.logprobs)
    assert one.finish_reason == other.finish_reason
    assert torch.equal(one.version, other.version)


def agrees(policy, prompts, written):
    """The log-probs are those that the policy gives to what was written, and every row is whole."""
    torch.testing.assert_close(written.logprobs, policy.completion_logprobs(prompts, written.ids), atol=1e-5, rtol=1e-4)
    lengths = (written.ids != PAD).sum(1)
    last = written.ids.gather(1, lengths[:, None] - 1)[:, 0]
    assert ["stop" if token == EOS else "length" for token in last.tolist()] == written.finish_reason
    assert (lengths[last != EOS] == written.ids.shape[1]).all()


def test_logprobs_are_the_trainers_of_the_same_weights_and_versions_are_kept(serve):
    policy, prompts = policy_of(seed=3), prompts_of()
    engine = loaded(serve(model_of()), policy, version=4)
    written = engine.generate(prompts, sampling_of())
    agrees(policy, prompts, written)
    assert set(written.version.flatten().tolist()) == {4}
    assert {"stop", "length"} == set(written.finish_reason)


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_new_tokens": 3},
        {"allowed_tokens": (0, 1, 2, 3)},
    ],
)
def test_the_policys_sampling_reaches_the_server(serve, rules):
    policy = policy_of(sampling=TokenSampling(**rules))
    written = loaded(serve(model_of()), policy).generate(prompts_of(), sampling_of(rules=policy.sampling))
    agrees(policy, prompts_of(), written)


def test_a_row_depends_on_its_seed_alone(serve):
    engine = loaded(serve(model_of()), policy_of())
    whole = engine.generate(prompts_of(), sampling_of())
    shards = [
        engine.generate(prompts_of()[part], sampling_of(other_rows=(part.start, 8 - part.stop)))
        for part in (slice(0, 3), slice(3, 8))
    ]
    assert torch.equal(whole.ids, torch.cat([each.ids for each in shards]))
    assert not torch.equal(whole.ids, engine.generate(prompts_of(), sampling_of(seed=1)).ids)


def test_another_process_writes_its_share_by_what_the_first_one_sent(serve):
    fake, policy = serve(model_of()), policy_of(seed=3)
    whole = loaded(fake, policy, version=3).generate(prompts_of(), sampling_of())
    follower = engine_of(fake)
    follower.update((), 3)
    share = follower.generate(prompts_of()[5:], sampling_of(other_rows=(5, 0)))
    assert torch.equal(share.ids, whole.ids[5:])
    assert set(share.version.flatten().tolist()) == {3}
    follower.update((), 4)
    follower.retries = 0
    with pytest.raises(EngineError, match="expected weights of version 4, received"):
        follower.generate(prompts_of(), sampling_of())


@pytest.mark.parametrize("fault", ["short", "garbage", "oom", "hang up", "stale"])
def test_a_row_that_fails_is_asked_for_again_and_no_other(serve, fault):
    fake = serve(model_of())
    engine = loaded(fake, policy_of())
    undisturbed = engine.generate(prompts_of(), sampling_of())
    before = fake.calls[PATH]
    fake.faults[PATH] = [None, fault, None]
    with pytest.warns(UserWarning, match="1 of 8 rows are missing"):
        same(engine.generate(prompts_of(), sampling_of()), undisturbed)
    assert fake.calls[PATH] - before == 9


def test_a_slow_answer_is_named_and_asked_for_again(serve):
    fake = serve(model_of())
    engine = loaded(fake, policy_of(), timeout_s=2.0)
    undisturbed = engine.generate(prompts_of(), sampling_of(max_concurrent_rows=1))
    fake.faults[PATH] = ["slow"]
    with pytest.warns(UserWarning, match="timed out"):
        same(engine.generate(prompts_of(), sampling_of(max_concurrent_rows=1)), undisturbed)


def test_a_server_that_was_killed_and_started_anew_gets_the_weights_again(serve):
    fake, policy = serve(model_of()), policy_of(seed=5)
    engine = loaded(fake, policy, version=2)
    undisturbed = engine.generate(prompts_of(), sampling_of())
    fake.faults[PATH] = [None, None, "kill"]
    fake.start_when_stopped()
    with pytest.warns(UserWarning, match="no answer"):
        same(engine.generate(prompts_of(), sampling_of(max_concurrent_rows=1)), undisturbed)
    assert fake.version == "2"


def test_what_fails_for_good_is_named_and_what_was_finished_is_kept(serve):
    fake = serve(model_of())
    engine = loaded(fake, policy_of(), retries=1)
    undisturbed = engine.generate(prompts_of(), sampling_of())
    fake.faults[PATH] = [None] * 5 + ["oom"] * 6
    with pytest.raises(EngineError, match=r"answered 500.*out of memory.*given up after 2 attempts"):
        engine.generate(prompts_of(), sampling_of())
    before = fake.calls[PATH]
    same(engine.generate(prompts_of(), sampling_of()), undisturbed)
    assert fake.calls[PATH] - before == 3


def test_a_refused_request_is_an_error_at_once(serve):
    fake = serve(model_of())
    engine = loaded(fake, policy_of())
    fake.faults[PATH] = ["refuse"]
    with pytest.raises(ValueError, match=r"answered 400.*too long"):
        engine.generate(prompts_of(1), sampling_of())


@pytest.mark.parametrize(
    "path", ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update", "/resume"]
)
@pytest.mark.parametrize("fault", ["oom", "hang up"])
def test_an_update_that_fails_on_its_way_is_done_again(serve, path, fault):
    fake, policy = serve(model_of()), policy_of(seed=8)
    engine = loaded(fake, policy_of())
    fake.faults[path] = [fault]
    if path == "/resume":  # the weights are there
        engine.update(named_weights(policy), 1)
    else:
        with pytest.warns(UserWarning, match="trying again"):
            engine.update(named_weights(policy), 1)
    assert fake.version == "1"
    agrees(policy, prompts_of(), engine.generate(prompts_of(), sampling_of()))


def test_a_server_that_is_not_there_is_named():
    engine = VLLMEngine("http://127.0.0.1:9", retries=0, patience_s=0.1)
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9.*no answer"):
        engine.update(named_weights(policy_of()), 0)
    for url in ("localhost:8000", "http://", "http://:8000", "http://host:port", "http://host:99999"):
        with pytest.raises(ValueError, match="expected the URL of a server"):
            VLLMEngine(url)
    with pytest.raises(ValueError, match=r'transfer: expected "folder", or "broadcast" of .*brodcast'):
        VLLMEngine("http://host:8000", transfer="brodcast")


def test_an_adapter_alone_is_sent_and_writes_as_the_policy_does(serve):
    trunk = AdaptedTrunk(model_of(), LoraOptions(rank=2, alpha=6.0), value=False)
    policy = CausalLMPolicy(trunk.model, critic="none", adapters=trunk)
    with torch.no_grad():
        for parameter in trunk.parameters("policy"):
            parameter.normal_(std=0.5)
    fake = serve(model_of())
    engine = loaded(fake, policy, version=1, adapter_only=True)
    agrees(policy, prompts_of(), engine.generate(prompts_of(), sampling_of()))
    engine.update(named_weights(policy, adapter_only=True), 2)
    assert list(fake.adapters) == ["version-2"]
    agrees(policy, prompts_of(), engine.generate(prompts_of(), sampling_of()))
    with pytest.raises(ValueError, match="expected a policy with adapters"):
        next(named_weights(policy_of(), adapter_only=True))
    # merged, the whole model is the same distribution
    agrees(policy, prompts_of(), loaded(serve(model_of()), policy).generate(prompts_of(), sampling_of()))


def test_weights_are_kept_once_and_the_folder_goes_with_the_engine(serve):
    engine = loaded(serve(model_of()), policy_of())
    for version in (1, 2):
        engine.update(named_weights(policy_of()), version)
    assert [each.name for each in engine.folder.iterdir()] == ["version-2"]
    engine.close()
    assert not engine.folder.exists()


class CountsThrees:
    def score_tokens(self, prompts, completions):
        return (completions == 3).sum(1).astype(np.float32)


def envs_of(num_envs=8, beta=0.1):
    envs = TokenVectorEnv(
        num_envs, prompts=[[1, 2], [3], [2, 4, 5]], eos_token_id=EOS, vocab_size=V, max_new_tokens=T, group_size=2
    )
    frozen = policy_of(seed=7)

    def reference(prompts, completions):
        with torch.no_grad():
            return frozen.completion_logprobs(torch.from_numpy(prompts), torch.from_numpy(completions))

    return KLShaping(PreferenceReward(envs, CountsThrees()), reference, beta)


def agent_of(fake, policy, **options):
    config = TextAgentConfig.for_algorithm("rloo", group_size=2, learning_rate=0.01, epochs=1)
    collector = TextCollector(envs_of(), **{"seed": 1, "engine": engine_of(fake), **options})
    return TextAgent(config, policy, collector)


def test_an_agent_learns_by_an_engine_with_its_own_logprobs(serve):
    agent = agent_of(serve(model_of()), policy_of())
    assert agent.collector.correction == "sequence_truncate"
    for version in range(3):
        before = {name: weight.clone() for name, weight in agent.policy.state_dict().items()}
        agent.iterate()
        rollout, batch = agent.newest
        assert set(rollout.versions.flatten().tolist()) == {version}
        torch.testing.assert_close(batch.weights[rollout.mask], torch.ones(rollout.num_steps), atol=1e-3, rtol=0)
        assert agent.metrics["rollout/mismatch_max"] < 1e-4
        assert agent.metrics["rollout/staleness"] == 0
        assert any(not torch.equal(before[name], weight) for name, weight in agent.policy.state_dict().items())


def test_an_engine_that_fails_for_good_leaves_the_agent_as_it_was(serve):
    fake, undisturbed = serve(model_of()), agent_of(serve(model_of()), policy_of())
    agent = agent_of(fake, policy_of())
    agent.collector.writer.engine.retries = 0
    for each in (agent, undisturbed):
        each.iterate()
    fake.faults[PATH] = ["oom"]
    with pytest.raises(EngineError):
        agent.iterate()
    for each in (agent, undisturbed):
        each.iterate()
    for name, weight in undisturbed.policy.state_dict().items():
        torch.testing.assert_close(weight, agent.policy.state_dict()[name])


class Echo:
    """Two turns; pays 1 for a turn that holds the token 3."""

    def reset(self, seed=None):
        self.turns = 0
        return [1 + (seed or 0) % 3], {}

    def step(self, said):
        self.turns += 1
        return [4, 5], float(3 in said), self.turns == 2, False, {}


def dialogues(num_envs=6):
    return DialogueVectorEnv(
        num_envs, env=Echo, eos_token_id=EOS, vocab_size=V, max_turns=3, max_turn_tokens=4, max_tokens=16
    )


def test_dialogues_are_written_turn_by_turn_with_the_whole_row_as_prompt(serve):
    fake, policy = serve(model_of()), policy_of()
    collector = TextCollector(dialogues(), seed=1, engine=engine_of(fake))
    rollout, metrics = collector.collect(policy)
    own = policy.evaluate(rollout.observations, rollout.actions, rollout.mask).logprobs.detach()
    torch.testing.assert_close(rollout.behavior_logprobs, own, atol=1e-5, rtol=1e-4)
    assert int(rollout.turns.max()) == 1
    assert not bool((rollout.behavior_logprobs[~rollout.mask] != 0).any())
    assert metrics["rollout/mismatch_max"] < 1e-4
    continued = [body["token_ids"] for body in fake.requests if len(body["token_ids"]) > 1]
    rows = [row[row != PAD].tolist() for row in torch.cat([rollout.observations, rollout.actions], 1)]
    assert len(continued) == 6
    assert all(any(row[: len(prefix)] == prefix for row in rows) for prefix in continued)


def test_dialogues_are_the_same_in_shards(serve):
    engine = loaded(serve(model_of()), policy_of())

    def written(part):
        envs = dialogues()
        prompts = torch.from_numpy(envs.draw_prompts(seed=0))[part]
        return engine.generate(
            prompts, sampling_of(max_new_tokens=4, dialogue=envs, other_rows=(part.start, 6 - part.stop))
        )

    whole = written(slice(0, 6))
    assert torch.equal(whole.ids, torch.cat([written(part).ids for part in (slice(0, 2), slice(2, 6))]))
