"""Mistakes in collecting, normalizing, acting and resuming, for ``scripts.mutants`` to plant."""

# A line a mistake, however long: it is a table.
# ruff: noqa: E501

from __future__ import annotations

from scripts.mutation.mutant import Mutant

COLLECT, NORMALIZE, AGENT = "agents/control/collector.py", "agents/control/normalize.py", "agents/agent.py"
CONTROL = "agents/control/agent.py"
SPACES, DISTRIBUTIONS, HEADS = (
    "agents/control/spaces.py",
    "agents/functional/distributions.py",
    "agents/control/heads.py",
)
CLASSIC, EPISODES, BEST = "agents/control/classic/base.py", "agents/control/episodes.py", "agents/control/best.py"
T_COLLECT = "tests/agents/control/test_collector.py"
T_NORMALIZE = "tests/agents/control/test_normalize.py"
T_RESUME = "tests/agents/runs/test_resume.py"
T_PPO = "tests/agents/control/test_ppo.py"
T_DISTRIBUTIONS = "tests/agents/functional/test_distributions.py"
T_CLASSIC = "tests/agents/control/classic/test_classic.py"
T_CHECKPOINT = "tests/agents/runs/test_checkpoint.py"
T_REPLAY = "tests/agents/control/env_state/test_replay.py"

MUTANTS = (
    Mutant("A3", "V at a time limit is that of the next episode's first observation", COLLECT, "next_values[rows, steps] = after[num_envs:]", "pass", T_COLLECT),
    Mutant("A3", "final observations go to the wrong rows", COLLECT, "[self.encode.single(final[i])[0] for i in index]", "[self.encode.single(final[i])[0] for i in index[::-1]]", T_COLLECT),
    Mutant("A1", "phantom steps of NEXT_STEP are counted", COLLECT, "mask[t] = ~self._resetting", "mask[t] = True", T_COLLECT),
    Mutant("A1", "phantom steps end episodes", COLLECT, "ended = (terminated[t] | truncated[t]) & mask[t]", "ended = terminated[t] | truncated[t]", f"{T_COLLECT} {T_PPO}"),
    Mutant("A1", "phantom steps teach the observations' normalizer", COLLECT, "self.normalizer.update(raw[:num_steps][mask])", "self.normalizer.update(raw[:num_steps].reshape(-1, raw.shape[-1]))", T_COLLECT),
    Mutant("A2", "DISABLED: the old observation stays after a reset", COLLECT, "raw[t + 1][ended] = self.encode(fresh)[ended]", "pass", T_COLLECT),
    Mutant("A5", "the rollout's last step is bootstrapped from its own observation", COLLECT, "beyond = np.concatenate([raw[-1], last])", "beyond = np.concatenate([raw[-2], last])", T_COLLECT),
    Mutant("A5", "the chain goes on over the rollout's end", COLLECT, "ended[-1] = True", "ended[-1] = ended[-1]", T_COLLECT),
    Mutant("A5", "rows and steps are exchanged when rollouts are flattened", COLLECT, "torch.from_numpy(np.swapaxes(array, 0, 1).copy())", "torch.from_numpy(array.reshape(array.shape[1], array.shape[0], *array.shape[2:]).copy())", T_COLLECT),
    Mutant("A6", "an episode's length runs on", EPISODES, "self.lengths[ended] = 0", "pass", T_COLLECT),
    Mutant("A6", "an episode's return runs on", EPISODES, "self.returns[ended] = 0.0", "pass", T_COLLECT),
    Mutant("A6", "evaluation counts short episodes more often", "agents/control/evaluation.py", "ended & (left > 0))]", "ended)]", T_PPO),
    Mutant("A4", "the native CartPole never reaches its time limit", CLASSIC, "truncated = self._steps >= self._limit", "truncated = self._steps > self._limit", T_CLASSIC),
    Mutant("A3", "the native environments hand out the new episode's observation as the last", CLASSIC, "final[row] = self._observations[row].copy()", "final[row] = self._observations[row]", T_CLASSIC),
    Mutant("N2", "final observations are not normalized", COLLECT, "(self.normalizer(raw), self.normalizer(beyond))", "(self.normalizer(raw), beyond)", T_COLLECT),
    Mutant("N2", "predict forgets the normalizer", CONTROL, "features = normalizer(features)", "pass", T_PPO),
    Mutant("N2", "evaluation teaches the normalizer", CONTROL, "features = normalizer(features)", "normalizer.update(features)\n            features = normalizer(features)", f"{T_RESUME} {T_PPO}"),
    Mutant("N1", "batches are merged without the gap between their means", "agents/functional/running_moments.py", " + gap**2 * (self.count * number / total)", "", T_NORMALIZE),
    Mutant("N1", "statistics in float32", "agents/functional/running_moments.py", "samples = np.asarray(samples, np.float64)", "samples = np.asarray(samples, np.float32)", T_NORMALIZE),
    Mutant("N3", "the return's sum runs on over the end", NORMALIZE, "self.running = np.where(mask[t] & ended[t], 0.0, self.running)", "pass", T_NORMALIZE),
    Mutant("N3", "the return's sum is zeroed at termination only", COLLECT, "self.reward_scaler(rewards, terminated | truncated, mask)", "self.reward_scaler(rewards, terminated, mask)", T_COLLECT),
    Mutant("N3", "rewards are shifted by their mean", NORMALIZE, "scaled = rewards / np.sqrt", "scaled = (rewards - rewards.mean()) / np.sqrt", T_NORMALIZE),
    Mutant("N3", "reported returns are the scaled ones", COLLECT, "self.episodes.add(reward, ended, mask[t])", "self.episodes.add(reward if self.reward_scaler is None else reward / 2, ended, mask[t])", T_COLLECT),
    Mutant("P9", "Box: the clipped action is stored and scored", COLLECT, "        self._actions.append(actions)\n", "        self._actions.append(actions.clamp(-1, 1) if actions.is_floating_point() else actions)\n", T_COLLECT),
    Mutant("P9", "Box: the environment gets the unclipped action", SPACES, "shaped = np.clip(shaped, self.space.low, self.space.high)", "pass", T_DISTRIBUTIONS),
    Mutant("P9", "Box: the density without its normalizer", DISTRIBUTIONS, "(-0.5 * standardized.square() - log_std - HALF_LOG_2PI)", "(-0.5 * standardized.square() - HALF_LOG_2PI)", T_DISTRIBUTIONS),
    Mutant("P10", "Discrete: start is forgotten", SPACES, "return actions if self.start is None else actions + self.start", "return actions", T_DISTRIBUTIONS),
    Mutant("P10", "MultiDiscrete: log-probabilities are averaged", HEADS, "return logprob.sum(-1), entropy.sum(-1)", "return logprob.mean(-1), entropy.sum(-1)", T_DISTRIBUTIONS),
    Mutant("P10", "MultiDiscrete: entropies are averaged", HEADS, "return logprob.sum(-1), entropy.sum(-1)", "return logprob.sum(-1), entropy.mean(-1)", T_DISTRIBUTIONS),
    Mutant("P11", "forbidden actions keep some probability", DISTRIBUTIONS, "logits.masked_fill(~allowed, -torch.inf)", "logits.masked_fill(~allowed, -10.0)", T_DISTRIBUTIONS),
    Mutant("P11", "the entropy of a masked policy is NaN", DISTRIBUTIONS, "finite = torch.where(all_logprobs > -torch.inf, all_logprobs, 0.0)", "finite = all_logprobs", T_DISTRIBUTIONS),
    Mutant("P11", "a mask that allows nothing passes", DISTRIBUTIONS, "if not bool(allowed.any(-1).all()):", "if False:", T_DISTRIBUTIONS),
    Mutant("P12", "Adam's epsilon is torch's own", "agents/config.py", "adam_eps: float = 1e-5", "adam_eps: float = 1e-8", T_PPO),
    Mutant("P12", "Adam's epsilon does not reach the optimizer", "agents/control/ppo.py", "eps=config.adam_eps", "eps=1e-8", T_PPO),
    Mutant("P12", "the policy's last layer starts large", "agents/control/mlp.py", "gain=0.01", "gain=1.0", T_DISTRIBUTIONS),
    Mutant("P12", "hidden layers without the gain of sqrt 2", "agents/control/mlp.py", "gain if last else math.sqrt(2.0)", "gain if last else 1.0", T_DISTRIBUTIONS),
    Mutant("P8", "schedules go below 0", "agents/functional/schedules.py", "share = min(max(progress, 0.0), 1.0)\n    return max(schedule.start + share * (schedule.end - schedule.start), 0.0)", "return schedule.start + progress * (schedule.end - schedule.start)", T_DISTRIBUTIONS),
    Mutant("P8", "the learning rate never moves", "agents/control/ppo.py", 'group["lr"] = rate', 'group["lr"] = group["lr"]', T_PPO),
    Mutant("P14", "the last weights are kept instead of the best", BEST, "if mean >= self.best_mean:", "if True:", f"tests/agents/control/test_best.py {T_PPO}"),
    Mutant("P14", "the best weights are a view of those that train on", BEST, "{name: value.clone() for name, value in agent.policy.state_dict().items()}", "dict(agent.policy.state_dict())", f"tests/agents/control/test_best.py {T_PPO}"),
    Mutant("S2", "resume forgets the generator", AGENT, 'self.generator.set_state(state["generators"]["learn"])', "pass", T_RESUME),
    Mutant("S2", "resume forgets the optimizer", AGENT, 'self.optimizer.load_state_dict(state["optimizer"])', "pass", T_RESUME),
    Mutant("S2", "resume forgets the observations' normalizer", COLLECT, 'self.normalizer.load_state_dict(state["normalizer"])', "pass", T_RESUME),
    Mutant("S2", "resume forgets the rewards' normalizer", COLLECT, 'self.reward_scaler.load_state_dict(state["reward_scaler"])', "pass", T_RESUME),
    Mutant("S2", "resume forgets the environments", COLLECT, 'env_state.restore(self.envs, state["envs"])', "pass", T_RESUME),
    Mutant("S2", "resume forgets the schedules' place", AGENT, 'self.span = (progress["span"][0], progress["span"][1])', 'self.span = (0, progress["span"][1] + 1000)', T_RESUME),
    Mutant("S2", "resume forgets the episodes under way", COLLECT, 'self.episodes.load_state_dict(state["episodes"])', "pass", T_RESUME),
    Mutant("S2", "another configuration is resumed in silence", AGENT, "if _plain(value) != _plain(ours.get(name))", "if False", T_CHECKPOINT),
    Mutant("S2", "a replay that ends elsewhere is accepted", "agents/control/env_state/snapshot.py", 'if not _same(plain_state.plain(self._last), replay["last"]) or self._total != replay["total"]:', "if False:", T_REPLAY),
    Mutant("S2", "a damaged checkpoint is loaded", "agents/runs/checkpoint.py", 'if metadata.get("checksum") != _checksum', 'if False and metadata.get("checksum") != _checksum', T_CHECKPOINT),
    Mutant("S1", "evaluation draws from the training's generator", CONTROL, "generator=self.predict_generator", "generator=self.generator", T_RESUME),
)  # fmt: skip
