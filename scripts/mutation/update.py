"""Mistakes in advantages, losses and the optimizer loop, for ``scripts.mutants`` to plant."""

# A line a mistake, however long: it is a table.
# ruff: noqa: E501

from __future__ import annotations

from scripts.mutation.mutant import Mutant

GAE, LOSSES, UPDATE, MASKED = (
    "agents/functional/advantages.py",
    "agents/functional/losses.py",
    "agents/update.py",
    "agents/functional/masked.py",
)
FAST, RECORD = "agents/control/fast_mlp.py", "agents/update_record.py"
T_GAE = "tests/agents/functional/test_advantages.py"
T_LOSSES = "tests/agents/functional/test_losses.py"
T_UPDATE = "tests/agents/test_update.py"
T_FAST = "tests/agents/control/test_fast_mlp.py"

MUTANTS = (
    Mutant("A4", "bootstraps after termination", GAE, "next_values.masked_fill(terminated, 0.0)", "next_values", T_GAE),
    Mutant("A4", "a time limit is not bootstrapped", GAE, "next_values.masked_fill(terminated, 0.0)", "next_values.masked_fill(ended, 0.0)", T_GAE),
    Mutant("A4", "the chain is not cut at a time limit", GAE, "should_continue = ~ended & ~terminated", "should_continue = ~terminated", T_GAE),
    Mutant("P1", "lambda left out of the chain", GAE, "(gamma * lam)", "(gamma * gamma)", T_GAE),
    Mutant("P1", "the one-step error is discounted by lambda", GAE, "rewards + gamma * next", "rewards + lam * next", T_GAE),
    Mutant("P1", "the value is added instead of taken away", GAE, "0.0) - values, mask)", "0.0) + values, mask)", T_GAE),
    Mutant("T6", "a hole in the mask cuts the chain", GAE, "should_continue.to(delta.dtype), mask, 1.0)", "should_continue.to(delta.dtype), mask, 0.0)", T_GAE),
    Mutant("T6", "masked steps have the advantage of what follows", GAE, "return fill_masked(advantages.t().contiguous(), mask)", "return advantages.t().contiguous()", T_GAE),
    Mutant("T3", "the next value is read a column early", GAE, "at_or_after[:, 1:]", "at_or_after[:, :-1]", T_GAE),
    Mutant("T6", "mask forgotten in the policy loss's mean", LOSSES, "return -average(gain, mask)", "return -gain.mean()", T_LOSSES),
    Mutant("T6", "mask forgotten in the value loss", LOSSES, "0.5 * average(fill_masked(values - returns, mask).square(), mask)", "0.5 * (values - returns).square().mean()", T_LOSSES),
    Mutant("T6", "mask forgotten in the entropy bonus", LOSSES, "return -average(entropy, mask)", "return -entropy.mean()", T_LOSSES),
    Mutant("T14", "mask forgotten in whitening", MASKED, "mean = masked_mean(values, mask)\n    deviation = masked_var(values, mask)", "mean = values.mean()\n    deviation = values.var()", T_LOSSES),
    Mutant("P4", "the clip takes the larger term", LOSSES, "torch.minimum(ratio * advantages", "torch.maximum(ratio * advantages", T_LOSSES),
    Mutant("P4", "the clip's lower side is missing", LOSSES, "ratio.clamp(1.0 - clip,", "ratio.clamp(0.0,", T_LOSSES),
    Mutant("P4", "the policy loss has the wrong sign", LOSSES, "return -average(gain, mask)", "return average(gain, mask)", T_LOSSES),
    Mutant("P3", "the ratio is left in logarithms", LOSSES, "ratio = fill_masked(logprobs - old_logprobs, mask).clamp(max=LARGEST_LOG_RATIO).exp()", "ratio = 1.0 + fill_masked(logprobs - old_logprobs, mask)", T_LOSSES),
    Mutant("P5", "value clipping takes the smaller error", LOSSES, "torch.maximum(error.square(), near_error.square())", "torch.minimum(error.square(), near_error.square())", T_LOSSES),
    Mutant("P5", "the value loss without its half", LOSSES, "return 0.5 * average(fill_masked(values", "return average(fill_masked(values", T_LOSSES),
    Mutant("P4", "entropy is punished", LOSSES, "return -average(entropy, mask)", "return average(entropy, mask)", T_LOSSES),
    Mutant("P6", "advantages divided by a deviation that may be 0", MASKED, "torch.where(deviation > rounding, deviation + epsilon, torch.inf)", "deviation", f"{T_LOSSES} {T_UPDATE}"),
    Mutant("P6", "variance divided by n - 1 where n is 1", MASKED, "(count_valid(values, mask) - float(unbiased)).clamp(min=1.0)", "(count_valid(values, mask) - float(unbiased))", f"{T_LOSSES} {T_UPDATE}"),
    Mutant("P7", "the last remainder is dropped", UPDATE, "pieces = math.ceil(rows / size)", "pieces = math.ceil(rows / size)\n    batch = batch.rows(slice(0, rows - rows % size)) if rows > size else batch", T_UPDATE),
    Mutant("P7", "minibatches overlap by a row", UPDATE, "slice(i * rows // pieces, (i + 1) * rows // pieces)", "slice(max(i * rows // pieces - 1, 0), (i + 1) * rows // pieces)", T_UPDATE),
    Mutant("P13", "every microbatch weighs the same", UPDATE, "_weight(part, reduction) / count", "part.num_rows / minibatch.num_rows", T_UPDATE),
    Mutant("P13", "gradients of earlier minibatches stay", UPDATE, "    optimizer.zero_grad()\n", "", T_UPDATE),
    Mutant("P6", "advantages of the whole batch are whitened again in each minibatch", UPDATE, 'if config.normalize_advantages == "minibatch":', 'if config.normalize_advantages != "none":', T_UPDATE),
    Mutant("T15", "masked steps enter the logged entropy and KL", RECORD, "log_ratio, entropy = log_ratio[mask.flatten()], entropy[mask.flatten()]", "pass", "tests/agents/text/test_update.py tests/agents/test_update.py"),
    Mutant("P2", "the clip fraction counts ratios at 1", RECORD, "(change > clip_high)", "(change >= 0)", T_UPDATE),
    Mutant("P13", "the gradient is never scaled down", UPDATE, "gradient.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))", "gradient.mul_(1.0)", T_UPDATE),
    Mutant("P13", "the value coefficient is forgotten", UPDATE, "torch.add(policy, value, alpha=config.value_coef)", "torch.add(policy, value)", T_UPDATE),
    Mutant("P13", "the early stop does not come", UPDATE, "                return True\n", "                pass\n", T_UPDATE),
    Mutant("P1", "returns without the value", "agents/rollout.py", "advantages + self.values if returns is None", "advantages if returns is None", "tests/agents/control/test_collector.py tests/agents/control/test_ppo.py tests/agents/verification/test_probes.py"),
    Mutant("P4", "fast gradient: the clip is ignored", FAST, "plain.mul_(plain <= clipped)", "plain", T_FAST),
    Mutant("P4", "fast gradient: the entropy's sign", FAST, "outputs.addcmul_(probabilities, gap, value=entropy_weight)", "outputs.addcmul_(probabilities, gap, value=-entropy_weight)", T_FAST),
    Mutant("P4", "fast gradient: actor and critic exchanged in a hidden layer", FAST, "torch.mm(inner[:, part], self.weights[layer][side], out=upper[:, part])", "torch.mm(inner[:, part], self.weights[layer][1 - side], out=upper[:, part])", T_FAST),
    Mutant("P4", "fast gradient: the log standard deviation's", FAST, "(kept.square() - 1.0) * logprob", "kept.square() * logprob", T_FAST),
    Mutant("P4", "fast gradient: the value coefficient", FAST, "error.mul_(config.value_coef / number)", "error.mul_(1.0 / number)", T_FAST),
    Mutant("P4", "fast gradient: the first layer's activation passed over", FAST, "inner = self._through_activation(upper, hidden[1])", "inner = upper", T_FAST),
    Mutant("T12", "k3 with the log-ratio turned round", "agents/functional/kl.py", "gap = ref_logprobs - logprobs", "gap = logprobs - ref_logprobs", T_LOSSES),
    Mutant("T12", "k3 forgets its linear term", "agents/functional/kl.py", "curve = torch.expm1(inner) - inner", "curve = torch.expm1(inner)", T_LOSSES),
    Mutant("T12", "k3 overflows", "agents/functional/kl.py", "inner = gap.clamp(max=MAX_LOG_RATIO)", "inner = gap", T_LOSSES),
    Mutant("T12", "k1 is absolute", "agents/functional/kl.py", "return logprobs - ref_logprobs", "return (logprobs - ref_logprobs).abs()", T_LOSSES),
    Mutant("T12", "the full KL turned round", "agents/functional/kl.py", "safe.exp() * gap", "-safe.exp() * gap", T_LOSSES),
    Mutant("P2", "the logged KL turned round", RECORD, "k3(torch.zeros_like(log_ratio), log_ratio)", "k3(log_ratio, torch.zeros_like(log_ratio))", T_UPDATE),
    Mutant("P6", "a ratio beyond all numbers makes the gradient NaN", LOSSES, ".clamp(max=LARGEST_LOG_RATIO).exp()", ".exp()", T_LOSSES),
    Mutant("P6", "a gradient that is not finite is applied", UPDATE, "if not math.isfinite(norm.item()):", "if math.isnan(float(norm.numel())):", T_UPDATE),
    Mutant("P1", "whitening forgets the mean", MASKED, "centered = (values - mean) / deviation", "centered = values / deviation", T_LOSSES),
    Mutant("P6", "TRPO: the trust region is ignored by the line search", "agents/functional/trust_region.py", "gain > 0.0 and kl <= target_kl", "gain > 0.0", "tests/agents/functional/test_trust_region.py"),
    Mutant("P4", "TRPO: the step's length without the root", "agents/functional/trust_region.py", "math.sqrt(2.0 * target_kl / curvature)", "(2.0 * target_kl / curvature)", "tests/agents/functional/test_trust_region.py"),
)  # fmt: skip
