"""Mistakes in what GRPO, RLOO and REINFORCE add, in adapters, several rewards and packed rows, for ``scripts.mutants``."""

# A line a mistake, however long: it is a table.
# ruff: noqa: E501

from __future__ import annotations

from scripts.mutation.mutant import Mutant

DECISIONS = "agents/lm/decision_states.py"
GROUPS, LOSS, AGENT = "agents/functional/group_advantages.py", "agents/text/objective.py", "agents/text/agent.py"
LOSSES, MASKED, SCALING = "agents/functional/losses.py", "agents/functional/masked.py", "agents/text/score_scaling.py"
ADAPTERS, POLICY, GENERATION = "agents/lm/lora.py", "agents/lm/causal_lm.py", "agents/lm/generation.py"
COMBINING, CALIBRATION, ENSEMBLE = (
    "textenvs/wrappers/preference.py",
    "reward_models/evaluation/accuracy.py",
    "reward_models/ensemble.py",
)
ATTENTION = "textenvs/lm/packed_attention.py"
KERNELS = "textenvs/lm/linear_kernels.py"
TRUNK = "textenvs/lm/packed_forward.py"
FAST_PATHS, T_FAST_PATHS = "textenvs/lm/fast_paths.py", "tests/textenvs/lm/test_fast_paths.py"
T_GROUPS = "tests/agents/functional/test_group_advantages.py"
T_AGENT = "tests/agents/text/test_agent.py"
T_UPDATE = "tests/agents/text/test_update.py"
T_LOSSES = "tests/agents/functional/test_losses.py"
T_ADAPTERS = "tests/agents/lm/test_lora.py"
T_POLICY = "tests/agents/lm/test_causal_lm.py"
T_GENERATION = "tests/agents/lm/test_generation.py"
T_COMBINING = "tests/textenvs/wrappers/test_combining.py"
T_KERNELS = "tests/textenvs/lm/test_linear_kernels.py"
T_ATTENTION = "tests/textenvs/lm/test_packed_attention.py"
T_CALIBRATION = "tests/reward_models/evaluation/test_calibration.py"
T_ENSEMBLE = "tests/reward_models/test_ensemble.py"

PROCESSES, UPDATE, COLLECTOR = "agents/runs/distributed.py", "agents/update.py", "agents/text/collector.py"
T_PROCESSES = "tests/agents/runs/test_distributed.py"

MUTANTS = (
    Mutant("T14", "the mean is the batch's, not the group's", GROUPS, "groups - groups.mean(1, keepdim=True)", "groups - groups.mean()", T_GROUPS),
    Mutant("T14", "texts are grouped in turn, not in blocks", GROUPS, "return returns.view(-1, group_size)", "return returns.view(group_size, -1).t()", T_GROUPS),
    Mutant("T14", "the deviation is divided by although it is switched off", GROUPS, "if normalize_std and group_size > 1:", "if group_size > 1:", T_GROUPS),
    Mutant("T14", "the deviation is the batch's, not the group's", GROUPS, "(groups.std(1, keepdim=True) + epsilon)", "(groups.std() + epsilon)", T_GROUPS),
    Mutant("T14", "the deviation without Bessel's correction", GROUPS, "groups.std(1, keepdim=True)", "groups.std(1, keepdim=True, correction=0)", T_GROUPS),
    Mutant("T14", "a group of equal returns is divided by next to nothing", GROUPS, "torch.where((groups == groups[:, :1]).all(1, keepdim=True), 0.0, centered)", "centered + 0.0", T_GROUPS),
    Mutant("T14", "leave-one-out counts the text itself", GROUPS, "scale = group_size / max(group_size - 1, 1)", "scale = 1.0", T_GROUPS),
    Mutant("T14", "leave-one-out turned round", GROUPS, "scale = group_size / max(group_size - 1, 1)", "scale = (group_size - 1) / group_size", T_GROUPS),
    Mutant("T14", "padding's rewards are part of the return", AGENT, "returns = fill_masked(rollout.rewards, mask).sum(1)", "returns = rollout.rewards.sum(1)", T_AGENT),
    Mutant("T14", "the moving baseline knows the batch it judges", AGENT, '"moving": earlier}', '"moving": config.baseline_decay * earlier + (1.0 - config.baseline_decay) * mean}', T_AGENT),
    Mutant("T14", "the moving baseline forgets the past", AGENT, "config.baseline_decay * earlier + (1.0 - config.baseline_decay) * mean", "mean", T_AGENT),
    Mutant("T14", "resume forgets the moving baseline", AGENT, 'self.moving_baseline = state["moving_baseline"]', "self.moving_baseline = None", T_AGENT),
    Mutant("T14", "rewards to go count one step only", AGENT, "self._gae(rollout, rollout.rewards, 1.0)", "self._gae(rollout, rollout.rewards, 0.0)", T_AGENT),
    Mutant("P1", "the critic's targets use the actor's lambda", AGENT, "self._gae(rollout, rewards, config.critic_lam) + rollout.values", "advantages + rollout.values", T_AGENT),
    Mutant("P1", "the critic's targets are advantages", AGENT, "self._gae(rollout, rewards, config.critic_lam) + rollout.values", "self._gae(rollout, rewards, config.critic_lam)", T_AGENT),
    Mutant("T13", "the loss charges a KL that the reward charges already", LOSS, 'if config.kl_in != "reward":', "if batch.ref_logprobs is not None:", f"{T_UPDATE} {T_AGENT}"),
    Mutant("T13", "the KL in the loss has the wrong sign", LOSS, 'parts["kl_loss"], alpha=beta)', 'parts["kl_loss"], alpha=-beta)', f"{T_UPDATE} {T_AGENT}"),
    Mutant("T12", "the estimator gets policy and reference in the wrong order", LOSS, "ESTIMATORS[estimator](evaluation.logprobs, batch.ref_logprobs)", "ESTIMATORS[estimator](batch.ref_logprobs, evaluation.logprobs)", f"{T_UPDATE} {T_AGENT}"),
    Mutant("T12", "k2 and k3 exchanged", LOSS, '"k2": kl.k2, "k3": kl.k3', '"k2": kl.k3, "k3": kl.k2', f"{T_UPDATE} {T_AGENT}"),
    Mutant("T6", "the KL in the loss sees padding", LOSS, "average(fill_masked(found, mask), mask)", "found.mean()", f"{T_UPDATE} {T_AGENT}"),
    Mutant("P4", "the entropy bonus is charged", LOSS, "torch.add(total, entropy, alpha=config.entropy_coef)", "torch.add(total, entropy, alpha=-config.entropy_coef)", f"{T_UPDATE} {T_AGENT}"),
    Mutant("P4", "clip-higher is forgotten", LOSS, "clip_high=config.clip_high,", "clip_high=None,", f"{T_UPDATE} {T_AGENT}"),
    Mutant("P4", "the dual clip is forgotten", LOSS, "dual_clip=config.dual_clip,", "dual_clip=None,", f"{T_UPDATE} {T_AGENT}"),
    Mutant("P4", "tokens are averaged text by text", LOSS, '"token": (masked_mean, "steps")', '"token": (sequence_mean, "rows")', f"{T_UPDATE} {T_AGENT}"),
    Mutant("P4", "the constant average is the text's mean", LOSS, '"constant": (constant_mean, "rows")', '"constant": (sequence_mean, "rows")', f"{T_UPDATE} {T_AGENT}"),
    Mutant("T14", "scores are clipped before they are standardized", SCALING, "scaled = scores.astype(np.float64)\n", "scaled = scores.astype(np.float64)\n        scaled = scaled if self.limit is None else scaled.clip(-self.limit, self.limit)\n", T_AGENT),
    Mutant("T14", "scores have no mean taken off", SCALING, "(scaled - self.moments.mean)", "scaled", T_AGENT),
    Mutant("T14", "scores are scaled before they are learned from", SCALING, "        self.moments.update(scores)\n        scaled = scores.astype(np.float64)\n        if", "        scaled = scores.astype(np.float64)\n        if", T_AGENT),
    Mutant("T14", "a group's deviation has no small number added", GROUPS, "(groups.std(1, keepdim=True) + epsilon)", "groups.std(1, keepdim=True)", T_GROUPS),
    Mutant("T14", "a group is flat if two of its texts are alike", GROUPS, "(groups == groups[:, :1]).all(1).float()", "(groups[:, 1:] == groups[:, :1]).any(1).float()", T_GROUPS),
    Mutant("T14", "scores are divided by their variance", SCALING, "np.sqrt(self.moments.variance + 1e-8)", "(self.moments.variance + 1e-8)", T_AGENT),
    Mutant("T13", "the adapter that was on is not on again after an exception", ADAPTERS, "        try:\n            yield\n        finally:\n            self._switch(before)", "        yield\n        self._switch(before)", T_ADAPTERS),
    Mutant("T13", "the reference acts under the policy's adapter", "textenvs/lm/lora.py", "layer._disable_adapters = adapter is None", "layer._disable_adapters = False", T_ADAPTERS),
    Mutant("T13", "the trunk learns beside its adapters", ADAPTERS, "parameter.requires_grad_(any(belongs(name, role) for role in self.trained))", "parameter.requires_grad_(True)", T_ADAPTERS),
    Mutant("T13", "the value reads under the policy's adapter", POLICY, 'value = self.adapters.role(VALUE) if self.adapters is not None and self.critic == "adapter" else nullcontext()', "value = nullcontext()", T_ADAPTERS),
    Mutant("T13", "what is saved whole lacks the adapter", ADAPTERS, "merge_and_unload(adapter_names=[POLICY])", "unload()", T_ADAPTERS),
    Mutant("T13", "an adapter begins as another without its scale", ADAPTERS, "weight.mul_(of.scaling[source] / of.scaling[target])", "weight.mul_(1.0)", T_ADAPTERS),
    Mutant("T3", "a critic begins as another model without its offset", "agents/lm/critic.py", "policy.value_head.bias.fill_(float(bias))", "policy.value_head.bias.fill_(0.0)", T_POLICY),
    Mutant("T16", "an ensemble's score is its first member's", ENSEMBLE, "self.score_each(prompts, completions, finished=finished).mean(axis=0)", "self.score_each(prompts, completions, finished=finished)[0]", T_ENSEMBLE),
    Mutant("T16", "the members' spread is a sample's", COMBINING, "astype(np.float64).std(axis=0)", "astype(np.float64).std(axis=0, ddof=1)", T_COMBINING),
    Mutant("T16", "the worst case is the best", COMBINING, "exact.min(axis=0)", "exact.max(axis=0)", T_COMBINING),
    Mutant("T16", "uncertainty is rewarded", COMBINING, "- uncertainty_coef * exact.var(axis=0)", "+ uncertainty_coef * exact.var(axis=0)", T_COMBINING),
    Mutant("T16", "uncertainty is the deviation, not the variance", COMBINING, "uncertainty_coef * exact.var(axis=0)", "uncertainty_coef * exact.std(axis=0)", T_COMBINING),
    Mutant("T16", "weights are made to sum to 1", COMBINING, "np.asarray(weights, dtype=np.float64) @ exact", "np.asarray(weights, dtype=np.float64) @ exact / sum(weights)", T_COMBINING),
    Mutant("T16", "the calibration error weighs all bins the same", CALIBRATION, "(self.share * gaps).sum()", "gaps.mean()", T_CALIBRATION),
    Mutant("T16", "the choice's probability turned round", CALIBRATION, "np.exp(-np.logaddexp(0.0, -lead))", "np.exp(-np.logaddexp(0.0, lead))", T_CALIBRATION),
    Mutant("T1", "whether rows pack is asked once, whatever the attention is now", TRUNK, "if trunk.config._attn_implementation != OURS:", "if False:", T_FAST_PATHS),
    Mutant("T1", "a faster path that differs is taken all the same", FAST_PATHS, "if not difference <= allowed:", "if False:", T_FAST_PATHS),
    Mutant("T1", "faster layers that are wrong stay when they are found out", KERNELS, "delattr(module, name) if original is None else", "None if original is None else", T_FAST_PATHS),
    Mutant("T1", "packed rows begin a token late", ATTENTION, "(own.flatten().cumsum(0) - 1)", "own.flatten().cumsum(0)", f"{T_ATTENTION} {T_POLICY}"),
    Mutant("T1", "packed rows count positions from the batch's beginning", ATTENTION, "return self.places % self.width", "return torch.arange(len(self.places))", f"{T_ATTENTION} {T_POLICY}"),
    Mutant("T1", "packed rows see what comes after", ATTENTION, "value, None, is_causal=True", "value, None, is_causal=False", T_ATTENTION),
    Mutant("T1", "packed rows are put together out of order", ATTENTION, "flat.index_select(0, self.places)", "flat.index_select(0, self.places.roll(1))", T_ATTENTION),
    Mutant("T1", "what stands behind packed rows has a gradient", ATTENTION, "of_packed[len(places) :] = 0", "of_packed[len(places) :] = 1", T_ATTENTION),
    Mutant("T3", "the last MLP is left out where it is read", ATTENTION, "read[reads] = 1", "read[reads - 1] = 1", T_ATTENTION),
    Mutant("T3", "an MLP that looks beyond its position is left out all the same", TRUNK, "torch.allclose(some[ends], whole[ends], rtol=1e-3, atol=1e-3)", "True", T_ATTENTION),
    Mutant("T3", "states that are read a few rows at a time come in another order", TRUNK, "torch.cat(states).index_select(0, torch.cat(inside).argsort())", "torch.cat(states)", T_ATTENTION),
    Mutant("T3", "a few rows at a time are read at another row's place", TRUNK, "row[read] - begin", "row[read]", T_ATTENTION),
    Mutant("P13", "a row that is longer than a few tokens is left out", TRUNK, "if row > begin and tokens + length > TOKENS_AT_ONCE", "if tokens + length > TOKENS_AT_ONCE", T_ATTENTION),
    Mutant("P13", "instructions for bfloat16 that are slower than float32 are taken", KERNELS, 'return "amx_bf16" in (cpu_info("flags") or "").split()', "return True", T_KERNELS),
    Mutant("T1", "a text goes on from its prompt's place one token too late", ATTENTION, "steps >= common[:, None]", "steps > common[:, None]", f"{T_ATTENTION} {T_POLICY}"),
    Mutant("T1", "a row that ends within what others begin with lends them what is behind it", ATTENTION, "torch.minimum(torch.minimum(prefixes.lengths, lengths), lengths[first])", "torch.minimum(prefixes.lengths, lengths)", T_ATTENTION),
    Mutant("P13", "a prompt that is read once learns from its first text alone", ATTENTION, "of_packed.index_add_(0, sources, grad.index_select(0, twins))", "pass", f"{T_ATTENTION} {T_POLICY}"),
    Mutant("T1", "texts of different prompts read one prompt", DECISIONS, "return_inverse=True)[1], prompt_lengths)", "return_inverse=True)[1] * 0, prompt_lengths)", T_POLICY),
    Mutant("P13", "rows that fill up a product stay in it", KERNELS, "return out[:rows] if more else out", "return out", T_KERNELS),
    Mutant("T1", "the gradient of packed rows goes to their neighbors", ATTENTION, "torch.index_select(grad, 0, places, out", "torch.index_select(grad, 0, places.flip(0), out", f"{T_ATTENTION} {T_POLICY}"),
    Mutant("T10", "half types are rounded before they are multiplied", KERNELS, "linear(x.float(), weight.float()", "linear(x.bfloat16().float(), weight.bfloat16().float()", T_KERNELS),
    Mutant("P13", "a faster layer's weight has the wrong gradient", KERNELS, "grad.t() @ x if weight.is_contiguous() else (x.t() @ grad).t()", "grad.t() @ x.flip(0) if weight.is_contiguous() else (x.flip(0).t() @ grad).t()", T_KERNELS),
    Mutant("P13", "a faster layer's offset has the mean gradient", KERNELS, "grad.sum(0) if to_bias", "grad.mean(0) if to_bias", T_KERNELS),
    Mutant("P13", "several processes: each learns from its own share alone", UPDATE, "        processes.all_reduce_gradients(parameters)\n", "", T_PROCESSES),
    Mutant("P13", "several processes: gradients are averaged, although shares are weighted already", PROCESSES, "            dist.all_reduce(flat)\n", "            dist.all_reduce(flat)\n            flat /= self.count\n", T_PROCESSES),
    Mutant("P13", "several processes: a share is weighted as if it were the minibatch", UPDATE, "whole = size >= minibatch.num_rows and processes.count == 1", "whole = size >= ours.stop - ours.start", T_PROCESSES),
    Mutant("S2", "several processes: shares draw the same luck", GENERATION, "self.numbers[steps, self.before + rows]", "self.numbers[steps, rows]", T_PROCESSES),
    Mutant("S2", "several processes: the generator stands where its own share ended", COLLECTOR, "            uniform(len(whole.completions), self.generator, device)\n", "            pass\n", T_PROCESSES),
    Mutant("S2", "several processes: they begin with different weights", PROCESSES, "                dist.broadcast(tensor, src=0)\n", "                pass\n", T_PROCESSES),
    Mutant("T2", "a group's texts continue another prompt", GENERATION, "self.cache.expect(source, self.column)", "self.cache.expect(source.flip(0), self.column)", T_GENERATION),
)  # fmt: skip
