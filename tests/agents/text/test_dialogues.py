"""Dialogues as rollouts: the batch path equals the step path, and what environments write is seen and never learned.

Traps D1-D9 of docs/traps.md.
"""

import copy
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from agents.functional.advantages import generalized_advantages
from agents.functional.group_advantages import rewards_to_go_by_turn, turn_advantages
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.sampling import TokenSampling
from agents.text.advantages import critic_advantages
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import TextAgentConfig
from textenvs import PAD, DialogueVectorEnv, KLShaping, PreferenceReward
from textenvs.lm.packed_forward import pack_rows
from textenvs.lm.sizes import CPU

V, EOS = 17, 0
TURNS, TURN_TOKENS, ROW = 4, 3, 30


def windowed():
    """A model whose layers see five tokens back, so that the place of a key matters."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = MistralConfig(
        vocab_size=V, **sizes, num_key_value_heads=1, sliding_window=5, max_position_embeddings=ROW, eos_token_id=EOS,
        initializer_range=0.3,
    )  # fmt: skip
    policy = CausalLMPolicy(MistralForCausalLM(config))
    torch.nn.init.normal_(policy.value_head.weight)
    return policy


def policy_of(seed=0, critic="shared", **sampling):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=V, n_positions=ROW, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4,
        bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS,
    )  # fmt: skip
    policy = CausalLMPolicy(GPT2LMHeadModel(config), critic=critic, sampling=TokenSampling(**sampling))
    if policy.has_critic:
        torch.nn.init.normal_(policy.value_head.weight)
    return policy


class Echo(gym.Env):
    """Begins with one to three tokens; answers with what was said, reversed, and some of its own; ends by chance."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(1, V, self.np_random.integers(1, 4)).tolist(), {}

    def step(self, action):
        own = self.np_random.integers(1, V, self.np_random.integers(1, 5)).tolist()
        chance = self.np_random.random()
        return [*action[::-1], *own], float(sum(action)) / 10 + 1, chance < 0.15, 0.15 <= chance < 0.25, {}


def envs_of(num_envs=16, beta=0.3, env=Echo, **options):
    options = {"max_turns": TURNS, "max_turn_tokens": TURN_TOKENS, "max_tokens": ROW} | options
    envs = DialogueVectorEnv(num_envs, env=env, eos_token_id=EOS, vocab_size=V, **options)
    frozen = policy_of(seed=7)

    def reference(prompts, completions):
        with torch.no_grad():
            return frozen.evaluate(torch.from_numpy(prompts), torch.from_numpy(completions)).logprobs

    return KLShaping(PreferenceReward(envs, CountsThrees()), reference, beta)


class CountsThrees:
    """Score: the number of 3s in the whole dialogue."""

    def score_tokens(self, prompts, completions):
        return (completions == 3).sum(1).astype(float)


def collected(policy=None, seed=1, **options):
    collector = TextCollector(envs_of(**options), seed=seed)
    rollout, metrics = collector.collect(policy or policy_of())
    return rollout, collector.last, metrics


@pytest.mark.parametrize("budget", ["terminate", "truncate"])
def test_the_batch_path_equals_the_step_path(budget):
    """Tokens, rewards, log-probs, ends and reasons, with a random policy and random dialogues (contract 7)."""
    policy = policy_of()
    _rollout, rows, _ = collected(policy, budget=budget)
    assert {"terminated", "truncated", "turns"} <= set(rows.stop_reason)
    slow = envs_of(budget=budget, autoreset_mode="Disabled")
    observations, _ = slow.reset(seed=1)
    generator = torch.Generator().manual_seed(1)
    # The batch path draws one number a row and sampled token, and so does this loop, of rows that have ended, too.
    steps = np.zeros(16, dtype=int)
    columns = [np.flatnonzero(mask) for mask in rows.mask]
    alive = np.ones(16, dtype=bool)
    while alive.any():
        with torch.no_grad():
            tokens, logprobs = policy.act(torch.from_numpy(observations), generator=generator)
        if not slow.unwrapped.running.all():
            slow.reset(options={"reset_mask": ~slow.unwrapped.running})
        slow.hand_logprobs(np.minimum(logprobs.numpy(), 0))
        observations, rewards, terminated, truncated, infos = slow.step(tokens.numpy())
        for i in np.flatnonzero(alive):
            column = columns[i][steps[i]]
            assert tokens[i] == rows.completions[i, column]
            assert logprobs[i].item() == pytest.approx(rows.logprobs[i, column], abs=1e-4)
            assert rewards[i] == pytest.approx(rows.rewards[i, column], abs=1e-3)
            steps[i] += 1
            if steps[i] < len(columns[i]):
                assert not terminated[i]
                assert not truncated[i]
                continue
            assert (terminated[i], truncated[i]) == (rows.terminated[i], rows.truncated[i])
            assert infos["stop_reason"][i] == rows.stop_reason[i]
            joint = pack_rows(torch.from_numpy(rows.prompts[i : i + 1]), torch.from_numpy(rows.completions[i : i + 1]))
            assert observations[i][observations[i] != PAD].tolist() == joint[0].tolist()
            alive[i] = False
    assert steps.tolist() == rows.mask.sum(1).tolist()


@pytest.mark.parametrize("concurrent", [None, 5])
@pytest.mark.parametrize("build", [policy_of, partial(policy_of, critic="separate"), windowed])
def test_decoding_with_a_cache_across_turns_equals_a_full_forward_pass(build, concurrent):
    policy = build()
    collector = TextCollector(envs_of(), seed=3, max_concurrent_rows=concurrent)
    rollout, _ = collector.collect(policy)
    with torch.no_grad():
        found = policy.evaluate(rollout.observations, rollout.actions, rollout.mask)
    torch.testing.assert_close(found.logprobs, rollout.logprobs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.values, rollout.values, rtol=1e-4, atol=1e-4)


def test_neither_slots_nor_threads_nor_processes_change_a_dialogue():
    first, rows, _ = collected()
    for options, slots in (({"threads": 4}, None), ({"processes": 2}, None), ({}, 3)):
        collector = TextCollector(envs_of(**options), seed=1, max_concurrent_rows=slots)
        other, _ = collector.collect(policy_of())
        collector.base.close()
        assert torch.equal(first.actions, other.actions)
        torch.testing.assert_close(first.rewards, other.rewards, rtol=1e-4, atol=1e-4)
        assert collector.last.stop_reason.tolist() == rows.stop_reason.tolist()


def test_advantages_over_rows_equal_those_of_the_sampled_steps_alone():
    """D1, D2: against a definition over the sampled tokens only, with a sum over all later steps."""
    rollout, rows, _ = collected(budget="truncate")
    gamma, lam = 0.9, 0.8
    found = generalized_advantages(
        rollout.rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.ended,
        gamma=gamma, lam=lam, mask=rollout.mask,
    )  # fmt: skip
    for i, mask in enumerate(rollout.mask):
        columns = mask.nonzero()[:, 0].tolist()
        values = [*rollout.values[i, columns].tolist(), 0.0]
        if rows.truncated[i]:
            values[-1] = float(rollout.next_values[i, columns[-1]])
            assert values[-1] != 0
        rewards = rollout.rewards[i, columns].tolist()
        deltas = [rewards[k] + gamma * values[k + 1] - values[k] for k in range(len(columns))]
        expected = [
            sum((gamma * lam) ** (m - k) * deltas[m] for m in range(k, len(columns))) for k in range(len(columns))
        ]
        np.testing.assert_allclose(found[i, columns].numpy(), expected, rtol=1e-4, atol=1e-4)
        assert found[i, ~mask].eq(0).all()


def test_a_turn_is_paid_on_its_last_token_and_the_score_on_the_last_of_all():
    rollout, rows, _ = collected(beta=0.0)
    for i in range(len(rows.completions)):
        columns = np.flatnonzero(rows.mask[i])
        turns = rows.turns[i, columns]
        for k, column in enumerate(columns):
            last = k + 1 == len(columns) or turns[k + 1] != turns[k]
            said = rows.completions[i][(rows.turns[i] == turns[k])]
            expected = sum(t for t in said.tolist() if t != EOS) / 10 + 1 if last else 0.0
            expected += (rows.completions[i] == 3).sum() if k + 1 == len(columns) else 0.0
            assert float(rollout.rewards[i, column]) == pytest.approx(expected, abs=1e-5)
    assert (rollout.rewards.numpy()[~rows.mask] == 0).all()


def test_lengths_and_kl_count_sampled_tokens_only():
    _, rows, metrics = collected()
    sampled = rows.mask.sum()
    assert sampled < (rows.completions != PAD).sum()
    assert metrics["rollout/length_mean"] == pytest.approx(sampled / 16)
    assert metrics["rollout/kl_per_token"] == pytest.approx(rows.kl.sum() / sampled)
    assert (rows.kl[~rows.mask] == 0).all()
    assert metrics["rollout/surprisal"] == pytest.approx(-rows.logprobs[rows.mask].mean(), rel=1e-5)


def test_what_environments_write_is_in_no_loss():
    """The gradient is that of the sampled tokens; other tokens of the environment change the context only."""
    policy = policy_of()
    rollout, rows, _ = collected(policy)
    evaluation = policy.evaluate(rollout.observations, rollout.actions, rollout.mask)
    assert evaluation.logprobs[~rollout.mask].eq(0).all()
    loss = evaluation.logprobs[rollout.mask].sum()
    (found,) = torch.autograd.grad(loss, policy.output_layer.weight)
    total = torch.zeros_like(found)
    for i in range(len(rows.completions)):
        joint = pack_rows(rollout.observations[i : i + 1], rollout.actions[i : i + 1])
        logprobs = policy.model(joint).logits[0].log_softmax(-1)
        start = int((rollout.observations[i] != PAD).sum())
        picked = sum(logprobs[start + c - 1, joint[0, start + c]] for c in np.flatnonzero(rows.mask[i]).tolist())
        total += torch.autograd.grad(picked, policy.output_layer.weight)[0]
    torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-3)


def test_groups_begin_alike_and_resume_is_bit_for_bit():
    policy = policy_of()
    collector = TextCollector(envs_of(group_size=4), seed=5)
    collector.collect(policy)
    state = copy.deepcopy(collector.state_dict())
    expected, _ = collector.collect(policy)
    assert all((block == block[:1]).all() for block in expected.observations.split(4))
    other = TextCollector(envs_of(group_size=4), seed=99)
    other.load_state_dict(state)
    found, _ = other.collect(policy)
    assert torch.equal(found.actions, expected.actions)
    assert torch.equal(found.rewards, expected.rewards)


def test_an_environment_that_does_not_follow_its_seed_is_refused_in_groups():
    class Careless(Echo):
        count = 0

        def reset(self, *, seed=None, options=None):
            Careless.count += 1
            return [1 + Careless.count % 5], {}

    with pytest.raises(ValueError, match="expected the same first observation from the same seed"):
        TextCollector(envs_of(env=Careless, group_size=4), seed=0).collect(policy_of())


def test_a_shortest_length_is_refused():
    with pytest.raises(ValueError, match="min_new_tokens: expected 0 in dialogues"):
        TextCollector(envs_of(), seed=0).collect(policy_of(min_new_tokens=2))


def turn_level(rollout, gamma_turn, lam):
    """GAE over turns, written out: a turn is one action, its reward the sum of its tokens'; ``[B][turn]``."""
    found = []
    for i, mask in enumerate(rollout.mask):
        columns = mask.nonzero()[:, 0].tolist()
        turns = rollout.turns[i, columns].tolist()
        firsts = [columns[turns.index(k)] for k in sorted(set(turns))]
        rewards = [float(rollout.rewards[i][rollout.turns[i] == k].sum()) for k in sorted(set(turns))]
        values = [float(rollout.values[i, c]) for c in firsts] + [float(rollout.next_values[i, columns[-1]])]
        if bool(rollout.terminated[i].any()):
            values[-1] = 0.0
        advantages, following = [], 0.0
        for k in reversed(range(len(rewards))):
            following = rewards[k] + gamma_turn * values[k + 1] - values[k] + gamma_turn * lam * following
            advantages.insert(0, following)
        found.append(advantages)
    return found


def test_credit_by_turn_is_gae_over_turns_up_to_the_critics_opinion_within_one():
    """D11: token by token it is the turn's advantage, less rewards that came before, with V(token) for V(turn)."""
    rollout, _, _ = collected(budget="truncate")
    config = TextAgentConfig(credit="turn", gamma_turn=0.9, lam=0.7)
    found = critic_advantages(rollout, rollout.rewards, 0.7, config)
    for i, turns in enumerate(turn_level(rollout, 0.9, 0.7)):
        for k, advantage in enumerate(turns):
            columns = (rollout.turns[i] == k).nonzero()[:, 0].tolist()
            for n, column in enumerate(columns):
                earlier = float(rollout.rewards[i, columns[:n]].sum())
                opinion = float(rollout.values[i, columns[0]] - rollout.values[i, column])
                expected = advantage - earlier + opinion
                assert float(found[i, column]) == pytest.approx(expected, abs=1e-4)


def test_credit_changes_nothing_where_a_text_is_one_turn():
    rollout, _, _ = collected(max_turns=1)
    by_token = critic_advantages(rollout, rollout.rewards, 1.0, TextAgentConfig())
    by_turn = critic_advantages(rollout, rollout.rewards, 1.0, TextAgentConfig(credit="turn"))
    assert torch.equal(by_token, by_turn)


def test_turns_of_a_group_are_compared_with_those_of_their_number_or_state():
    """By hand: two groups of two rows; -1 is the environment's."""
    turns = torch.tensor([[0, 0, -1, 1], [0, -1, 1, 1], [0, -1, 1, -1], [0, 0, 0, -1]])
    rewards = torch.tensor([[0.0, 1.0, 0.0, 2.0], [3.0, 0.0, 0.0, 5.0], [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 6.0, 0.0]])
    togo = rewards_to_go_by_turn(rewards, turns, gamma=0.5)
    assert togo.tolist() == [[2.0, 2.0, 0.0, 2.0], [5.5, 0.0, 5.0, 5.0], [1.5, 0.0, 1.0, 0.0], [6.0, 6.0, 6.0, 0.0]]
    found = turn_advantages(togo, turns, turns, 2)
    assert found.tolist() == [
        [-1.75, -1.75, 0.0, -1.5], [1.75, 0.0, 1.5, 1.5], [-2.25, 0.0, 0.0, 0.0], [2.25, 2.25, 2.25, 0.0]
    ]  # fmt: skip
    others = turn_advantages(togo, turns, turns, 2, leave_one_out=True)
    assert torch.equal(others, 2 * found)
    deviation = 3.5 / 2**0.5
    scaled = turn_advantages(togo, turns, turns, 2, normalize_std=True)
    assert float(scaled[1, 0]) == pytest.approx(1.75 / (deviation + 1e-4))
    # The second turn of row 0 began where the first turn of row 1 did.
    states = torch.tensor([[7, 7, 0, 8], [8, 0, 9, 9], [7, 0, 9, 0], [7, 7, 7, 0]])
    alike = turn_advantages(togo, turns, states, 2)
    assert alike[:2].tolist() == [[0.0, 0.0, 0.0, -1.75], [1.75, 0.0, 0.0, 0.0]]


def test_states_of_the_environment_name_the_turns_that_began_in_them():
    class Stateful(Echo):
        def reset(self, *, seed=None, options=None):
            observation, _ = super().reset(seed=seed)
            self.count = 0
            return observation, {"state": 0}

        def step(self, action):
            *rest, _ = super().step(action)
            self.count += len(action)
            return *rest, {"state": self.count}

    _, rows, _ = collected(env=Stateful)
    seen = {}
    for i in range(len(rows.completions)):
        count = 0
        for k in range(rows.turns[i].max() + 1):
            said = rows.completions[i][rows.turns[i] == k]
            names = set(rows.states[i][rows.turns[i] == k].tolist())
            assert len(names) == 1
            assert seen.setdefault(count, names) == names
            count += int((said != EOS).sum())
    assert len({min(names) for names in seen.values()}) == len(seen) > 3


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo", "reinforce"])
@pytest.mark.parametrize("credit", ["token", "turn", "state"])
def test_every_algorithm_takes_a_step_with_the_credit_that_it_has(algorithm, credit):
    settings = {"credit": credit, "gamma_turn": 0.9, "kl_in": "reward", "epochs": 1, "minibatch_size": 16}
    if credit == "state" and algorithm in ("ppo", "reinforce"):
        with pytest.raises(ValueError, match="credit needs"):
            TextAgentConfig.for_algorithm(algorithm, **settings)
        return
    if algorithm == "grpo":
        settings["group_size"] = 4
    config = TextAgentConfig.for_algorithm(algorithm, **settings)

    class Ending(Echo):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, reward, terminated or truncated, False, info

    policy = policy_of(critic="shared" if config.uses_critic else "none")
    collector = TextCollector(envs_of(group_size=config.group_size, env=Ending), seed=0)
    agent = TextAgent(config, policy, collector)
    before = copy.deepcopy(policy.state_dict())
    agent.learn(16)
    assert any(not torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert agent.newest[1].advantages[~agent.newest[0].mask].eq(0).all()


def test_credit_needs_dialogues():
    from textenvs import TokenVectorEnv

    envs = TokenVectorEnv(4, prompts=[[1, 2]], eos_token_id=EOS, vocab_size=V, max_new_tokens=3)
    with pytest.raises(ValueError, match=r'credit "turn".*expected an environment of dialogues'):
        TextAgent(TextAgentConfig(credit="turn", minibatch_size=4), policy_of(), TextCollector(envs))


def test_a_policy_that_begins_far_from_the_reference_is_warned_of_after_an_update_only():
    agent = TextAgent(TextAgentConfig(minibatch_size=16), policy_of(), TextCollector(envs_of(), seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.learn(16)
    with pytest.warns(UserWarning, match="after 1 updates the policy is .* nats per sequence from the reference"):
        agent.learn(16)


def test_observations_are_read_in_bounded_pieces_with_the_same_result(monkeypatch):
    import agents.lm.dialogues as dialogues

    whole, _, _ = collected()
    widths, read = [], dialogues.Reader._pass
    monkeypatch.setattr("textenvs.lm.sizes.CPU", CPU._replace(prefill_tokens=8))
    monkeypatch.setattr(
        dialogues.Reader,
        "_pass",
        lambda self, *args: (widths.append((len(args[0]), args[3] - args[2])), read(self, *args))[1],
    )
    pieces, _, _ = collected()
    assert torch.equal(whole.actions, pieces.actions)
    torch.testing.assert_close(whole.logprobs, pieces.logprobs, rtol=1e-4, atol=1e-4)
    assert all(rows * int(new.max()) <= 8 or rows == 1 or int(new.max()) == 1 for rows, new in widths)


def test_no_slots_are_refused():
    from agents.lm.generation import generate

    envs = envs_of().unwrapped
    with pytest.raises(ValueError, match="max_concurrent_rows: expected 1 or more"):
        generate(
            policy_of(),
            torch.from_numpy(envs.draw_prompts(seed=0)),
            max_new_tokens=3,
            dialogue=envs,
            max_concurrent_rows=0,
        )


def test_dialogues_ahead_are_those_of_the_same_weights_and_are_written_anew_after_a_resume():
    policy = policy_of()
    now, ahead = (TextCollector(envs_of(), seed=1, async_rollouts=n, correction="none") for n in (0, 1))

    def same(one, other):
        names = ("observations", "actions", "logprobs", "values", "rewards", "mask", "turns", "ended")
        return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)

    for number in range(3):
        expected, _ = now.collect(policy)
        found, metrics = ahead.collect(policy)
        assert same(found, expected)
        assert metrics["rollout/staleness"] == min(number, 1)
    resumed = TextCollector(envs_of(), seed=1, async_rollouts=1, correction="none")
    resumed.load_state_dict(ahead.state_dict())
    expected, _ = now.collect(policy)
    found, metrics = resumed.collect(policy)
    assert same(found, expected)
    assert metrics["rollout/staleness"] == 0
