"""Episode boundaries: the three autoreset modes, the final observation, phantom steps, statistics."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

from agents import PPO
from agents.control.collector import StepCollector
from agents.control.environments import make_vector
from agents.control.mlp import MLPPolicy
from agents.control.normalize import ObservationNormalizer, RewardScaler
from agents.functional.advantages import generalized_advantages
from agents.rollout import Rollout

MODES = list(AutoresetMode)


class Counter(gym.Env):
    """Observation: (episode, step). Ends after ``length`` steps; odd episodes terminate, even ones are truncated."""

    observation_space = spaces.Box(-1e3, 1e3, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, length: int, both: bool = False) -> None:
        self.length, self.both, self.episode, self.clock = length, both, -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.clock = self.episode + 1, 0
        return self._see(), {}

    def step(self, action):
        assert self.clock < self.length, "stepped after the end"
        self.clock += 1
        end = self.clock == self.length
        odd = self.episode % 2 == 1
        reward = 100 * self.episode + self.clock + float(action) / 10
        return self._see(), reward, end and (odd or self.both), end and (not odd or self.both), {}

    def _see(self):
        return np.array([self.episode, self.clock], np.float32)


class Scripted(torch.nn.Module):
    """Acts by the observation alone; V = 1000 * episode + clock, so every value tells whose it is."""

    keeps_rows = False

    def act(self, observations, *, deterministic=False, generator=None):
        return (observations.sum(-1) % 3).long(), -observations[..., 1]

    def values(self, observations):
        return 1000 * observations[..., 0] + observations[..., 1]


def collect(mode: AutoresetMode, num_steps: int, lengths=(3, 5), both=False, rollouts=1, **options) -> list[Rollout]:
    envs = SyncVectorEnv([lambda n=n: Counter(n, both) for n in lengths], autoreset_mode=mode)
    collector = StepCollector(envs, num_steps, generator=torch.Generator(), **options)
    return [collector.collect(Scripted())[0] for _ in range(rollouts)]


def real_steps(rollouts: list[Rollout], row: int) -> list[list[float]]:
    """Everything that training sees of one environment, step by step, phantoms left out."""
    steps = []
    for r in rollouts:
        for t in r.mask[row].nonzero().flatten().tolist():
            fields = (r.actions, r.logprobs, r.values, r.rewards, r.terminated)
            after = r.next_values[row, t] * ~r.terminated[row, t]
            steps.append([*r.observations[row, t].tolist(), *(float(x[row, t]) for x in fields), float(after)])
    return steps


@pytest.mark.parametrize("mode", MODES)
def test_next_values_are_those_of_the_state_before_any_reset(mode):
    (rollout,) = collect(mode, 14)
    episode, clock = rollout.observations[..., 0], rollout.observations[..., 1]
    real = rollout.mask & ~rollout.terminated
    torch.testing.assert_close(rollout.next_values[real], (1000 * episode + clock + 1)[real])
    lengths = torch.tensor([[3.0], [5.0]])
    ends = (clock + 1 == lengths) & rollout.mask
    ends[:, -1] = True
    assert torch.equal(rollout.ended | ~rollout.mask, ends | ~rollout.mask)
    assert torch.equal(rollout.terminated & rollout.mask, (clock + 1 == lengths) & (episode % 2 == 1) & rollout.mask)


def test_all_modes_give_the_same_training_data():
    streams = {mode: collect(mode, 9, rollouts=3) for mode in MODES}
    for row in range(2):
        expected = real_steps(streams[AutoresetMode.SAME_STEP], row)
        assert len(expected) == 27
        assert real_steps(streams[AutoresetMode.DISABLED], row) == expected
        masked = real_steps(streams[AutoresetMode.NEXT_STEP], row)
        assert len(masked) < 27
        assert masked == expected[: len(masked)]


def test_all_modes_give_the_same_advantages():
    """Four episodes of three steps each; NEXT_STEP needs three more steps, for its phantoms."""
    results = []
    for mode in MODES:
        (rollout,) = collect(mode, 15 if mode is AutoresetMode.NEXT_STEP else 12, lengths=(3, 3))
        advantages = generalized_advantages(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.ended,
            gamma=0.9,
            lam=0.8,
            mask=rollout.mask,
        )
        batch = rollout.to_batch(advantages).single_steps()
        results.append(batch)
    for batch in results[1:]:
        for name, expected in vars(results[0]).items():
            assert expected is None or torch.equal(getattr(batch, name), expected), name


def test_phantom_steps_are_not_counted():
    (rollout,) = collect(AutoresetMode.NEXT_STEP, 20)
    # Of 20 vector steps, row 0 spends every 4th on a reset, row 1 every 6th.
    assert (~rollout.mask).sum(1).tolist() == [5, 3]
    assert rollout.num_steps == 40 - 8
    assert rollout.to_batch(torch.zeros(2, 20)).single_steps().num_rows == 32


@pytest.mark.parametrize("mode", MODES)
def test_terminated_wins_over_truncated(mode):
    (rollout,) = collect(mode, 12, both=True)
    ends = rollout.ended & rollout.mask
    ends[:, -1] = False
    assert rollout.terminated[ends].all()


@pytest.mark.parametrize("mode", MODES)
def test_an_unfinished_episode_bootstraps_from_its_own_next_observation(mode):
    (rollout,) = collect(mode, 4, lengths=(7, 9))
    assert rollout.ended.tolist() == [[False, False, False, True]] * 2
    assert not rollout.terminated.any()
    assert rollout.next_values[:, -1].tolist() == [4.0, 4.0]


@pytest.mark.parametrize("mode", MODES)
def test_episode_statistics_equal_the_scalar_environment_for_every_episode(mode):
    envs = SyncVectorEnv([lambda n=n: Counter(n) for n in (3, 5)], autoreset_mode=mode)
    collector = StepCollector(envs, 11, generator=torch.Generator())
    for _ in range(3):
        collector.collect(Scripted())
    expected = {}
    for n in (3, 5):
        env, policy = Counter(n), Scripted()
        for episode in range(12):
            observation, _ = env.reset()
            total, over = 0.0, False
            while not over:
                action = int(policy.act(torch.tensor(observation)[None])[0])
                observation, reward, terminated, truncated, _ = env.step(action)
                total, over = total + reward, terminated or truncated
            expected[n, episode] = total
    for n in (3, 5):
        returns = [total for total, length in collector.episodes.finished if length == n]
        assert len(returns) >= 4
        assert returns == pytest.approx([expected[n, i] for i in range(len(returns))])


@pytest.mark.parametrize("mode", MODES)
def test_a_one_state_chain_with_a_time_limit_is_worth_1_over_1_minus_gamma(mode):
    class Chain(Counter):
        def step(self, action):
            _, _, terminated, truncated, info = super().step(action)
            return np.zeros(2, np.float32), 1.0, False, terminated or truncated, info

        def _see(self):
            return np.zeros(2, np.float32)

    class Judge(Scripted):
        value = 0.0

        def values(self, observations):
            return torch.full(observations.shape[:-1], self.value)

    envs = SyncVectorEnv([lambda: Chain(4)], autoreset_mode=mode)
    collector, judge = StepCollector(envs, 16, generator=torch.Generator()), Judge()
    for _ in range(60):
        r, _ = collector.collect(judge)
        ends = (r.rewards, r.values, r.next_values, r.terminated, r.ended)
        advantages = generalized_advantages(*ends, gamma=0.9, lam=0.95, mask=r.mask)
        judge.value = float((advantages + r.values)[r.mask].mean())
    assert judge.value == pytest.approx(10.0, rel=1e-4)


def test_the_quick_actor_gives_what_the_policy_itself_says():
    envs = make_vector("CartPole-v1", 3)
    policy = MLPPolicy(envs.single_observation_space, envs.single_action_space)
    rollout, _ = StepCollector(envs, 40, generator=torch.Generator().manual_seed(0), seed=1).collect(policy)
    with torch.no_grad():
        evaluation = policy.evaluate(rollout.observations, rollout.actions, None)
    torch.testing.assert_close(rollout.logprobs, evaluation.logprobs)
    torch.testing.assert_close(rollout.values, evaluation.values)
    inside = ~rollout.ended[:, :-1]
    torch.testing.assert_close(rollout.next_values[:, :-1][inside], rollout.values[:, 1:][inside])


@pytest.mark.parametrize("mode", MODES)
def test_final_observations_are_normalized_like_all_others(mode):
    normalizer = ObservationNormalizer(2)
    normalizer.update(np.array([[0, 0], [2, 4], [4, 8]], np.float32))
    reference = ObservationNormalizer(2)
    reference.load_state_dict(normalizer.state_dict())
    (rollout,) = collect(mode, 8, normalizer=normalizer)
    r = rollout
    # A truncated episode 0 of row 0 ended in the observation (0, 3).
    expected = Scripted().values(torch.from_numpy(reference(np.array([0.0, 3.0], np.float32))))
    torch.testing.assert_close(r.next_values[0, 2], expected)
    assert normalizer.moments.count == 3 + r.num_steps


def test_nothing_is_learned_from_phantoms_by_the_normalizers():
    normalizer, scaler = ObservationNormalizer(2), RewardScaler(2, 0.9)
    (masked,) = collect(AutoresetMode.NEXT_STEP, 15, lengths=(3, 3), normalizer=normalizer, reward_scaler=scaler)
    plain, plain_scaler = ObservationNormalizer(2), RewardScaler(2, 0.9)
    (clean,) = collect(AutoresetMode.SAME_STEP, 12, lengths=(3, 3), normalizer=plain, reward_scaler=plain_scaler)
    np.testing.assert_array_equal(normalizer.moments.mean, plain.moments.mean)
    np.testing.assert_allclose(scaler.moments.variance, plain_scaler.moments.variance, rtol=1e-12)
    torch.testing.assert_close(masked.rewards[masked.mask], clean.rewards[clean.mask])


def test_reported_returns_are_the_environments_own_whatever_is_normalized():
    figures = []
    for scaler in (None, RewardScaler(2, 0.9)):
        envs = SyncVectorEnv([lambda n=n: Counter(n) for n in (3, 5)], autoreset_mode=AutoresetMode.SAME_STEP)
        collector = StepCollector(envs, 15, generator=torch.Generator(), reward_scaler=scaler)
        rollout, metrics = collector.collect(Scripted())
        figures.append((metrics, rollout.rewards))
    assert figures[0][0] == figures[1][0]
    assert not torch.equal(figures[0][1], figures[1][1])


def test_the_returns_sum_starts_anew_after_a_time_limit_too():
    scaler = RewardScaler(1, 1.0)
    (rollout,) = collect(AutoresetMode.SAME_STEP, 3, lengths=(3,), reward_scaler=scaler)  # episode 0 is truncated
    assert rollout.ended[0, 2]
    assert not rollout.terminated[0, 2]
    assert scaler.running[0] == 0.0


def test_a_box_rollout_stores_and_scores_the_unclipped_action():
    class Bounded(gym.Env):
        observation_space = action_space = spaces.Box(-0.1, 0.1, (1,))

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            assert self.action_space.contains(action)
            return np.zeros(1, np.float32), float(action[0]), False, False, {}

    envs = SyncVectorEnv([Bounded] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    policy = MLPPolicy(Bounded.observation_space, Bounded.action_space)
    rollout, _ = StepCollector(envs, 20, generator=torch.Generator().manual_seed(0)).collect(policy)
    assert rollout.actions.abs().max() > 1.0
    torch.testing.assert_close(rollout.rewards, rollout.actions[..., 0].clamp(-0.1, 0.1))
    expected = torch.distributions.Normal(policy.actor(rollout.observations), 1.0).log_prob(rollout.actions)[..., 0]
    torch.testing.assert_close(rollout.logprobs, expected)


def test_what_a_phantom_step_says_of_ends_does_not_matter():
    class Echo(VectorWrapper):
        """Says once more, on the reset row, that the episode ended."""

        def step(self, actions):
            before = getattr(self, "over", np.zeros(self.num_envs, bool))
            observations, rewards, terminated, truncated, info = self.env.step(actions)
            self.over = (terminated | truncated) & ~before
            return observations, rewards, terminated | before, truncated | before, info

    rollouts = []
    for wrap in (Echo, lambda envs: envs):
        envs = SyncVectorEnv([lambda: Counter(3)] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
        collector = StepCollector(wrap(envs), 13, generator=torch.Generator())
        rollout, metrics = collector.collect(Scripted())
        rollouts.append((rollout, metrics, collector.episodes.finished))
    (one, metrics, finished), (other, expected, same) = rollouts
    assert metrics == expected
    assert finished == same
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.rewards[one.mask], other.rewards[other.mask])


def test_an_empty_action_mask_after_the_last_step_does_not_stop_the_phantom_step():
    class Masked(Counter):
        observation_space = spaces.Dict({"action_mask": spaces.MultiBinary(3), "x": Counter.observation_space})

        def _see(self):
            over = self.clock == self.length
            return {"action_mask": np.array([0, 0, 0] if over else [0, 1, 1], np.int8), "x": super()._see()}

    for mode in MODES:
        envs = SyncVectorEnv([lambda: Masked(3)] * 2, autoreset_mode=mode)
        policy = MLPPolicy(envs.single_observation_space, envs.single_action_space)
        rollout, _ = StepCollector(envs, 30, generator=torch.Generator().manual_seed(0)).collect(policy)
        assert (rollout.actions[rollout.mask] > 0).all()
        assert torch.isfinite(rollout.logprobs[rollout.mask]).all()


def test_a_vector_environment_without_final_observations_is_told_what_is_missing():
    class Old(VectorWrapper):
        def step(self, actions):
            *step, info = self.env.step(actions)
            return *step, {name.replace("final_obs", "final_observation"): value for name, value in info.items()}

    envs = Old(SyncVectorEnv([lambda: Counter(3)], autoreset_mode=AutoresetMode.SAME_STEP))
    with pytest.raises(ValueError, match=r"info: expected final_obs, as .*SAME_STEP.*received.*'final_observation'"):
        StepCollector(envs, 5, generator=torch.Generator()).collect(Scripted())


def test_a_vector_environment_that_hides_its_autoreset_mode_is_refused():
    envs = SyncVectorEnv([lambda: Counter(3)])
    envs.metadata = {}
    with pytest.raises(ValueError, match="autoreset_mode"):
        StepCollector(envs, 4, generator=torch.Generator())


@pytest.mark.parametrize("error", [RuntimeError("lost"), KeyboardInterrupt()])
@pytest.mark.parametrize("mode", MODES)
def test_after_a_rollout_that_was_cut_short_the_next_one_begins_with_fresh_resets(mode, error):
    """Its first action was chosen for the observation before, and the sums of the lost steps were counted."""

    class Flaky(Counter):
        def step(self, action):
            if self.episode == 2 and self.clock == 1:
                raise error
            return super().step(action)

    envs = SyncVectorEnv([lambda: Flaky(3)], autoreset_mode=mode)
    scaler = RewardScaler(1, 0.9)
    collector = StepCollector(envs, 5, generator=torch.Generator(), seed=0, reward_scaler=scaler)
    collector.collect(Scripted())
    with pytest.raises(type(error)):
        collector.collect(Scripted())
    rollout, metrics = collector.collect(Scripted())
    assert rollout.observations[0, :3].tolist() == [[3, 0], [3, 1], [3, 2]]
    assert rollout.mask[0, :3].all()
    assert metrics["rollout/length_mean"] == 3


@pytest.mark.parametrize("made", ["one", "vector", "native"])
def test_learning_goes_on_in_mid_episode_or_if_somebody_stepped_the_environments_from_fresh_resets(made):
    """The first action was chosen for the observation that the last rollout ended with."""
    vector = SyncVectorEnv([lambda: Counter(7)], autoreset_mode=AutoresetMode.SAME_STEP)
    env = {"one": Counter(7), "vector": vector, "native": "CartPole-v1"}[made]
    agent = PPO(env, num_envs=1, num_steps=16, minibatch_size=16, epochs=1, hidden=(4,), seed=0)
    seen, compute_advantages = [], agent.compute_advantages

    def spy(rollout):
        seen.append(rollout.observations[0])
        return compute_advantages(rollout)

    agent.compute_advantages = spy
    state = agent.learn(16).learn(16).state_dict()
    by_hand = agent.get_env() if made != "one" else env
    by_hand.reset()
    by_hand.step(np.array([0]) if made != "one" else 0)
    agent.learn(16)
    by_hand.reset()
    agent.load_state_dict(state)
    agent.learn(16)
    if made == "native":
        assert float(seen[2][0].abs().max()) <= 0.05  # where episodes begin
    else:
        on = torch.tensor([0.0, 1.0])
        assert torch.equal(seen[1][0], seen[0][-1] + on)
        assert float(seen[2][0, 1]) == 0
        assert torch.equal(seen[3][0], seen[1][-1] + on)
        assert agent.metrics["rollout/length_mean"] == 7
