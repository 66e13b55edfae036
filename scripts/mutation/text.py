"""Mistakes with tokens, prices, scores and reward models, for ``scripts.mutants`` to plant."""

# A line a mistake, however long: it is a table.
# ruff: noqa: E501

from __future__ import annotations

from scripts.mutation.mutant import Mutant

DECISIONS, TOKEN_HEAD, KL_PRICE = (
    "agents/lm/decision_states.py",
    "agents/lm/token_head.py",
    "agents/text/kl_controllers.py",
)
POLICY, TRUNK, HEAD = "agents/lm/causal_lm.py", "textenvs/lm/packed_forward.py", "agents/lm/fused_logprobs.py"
GENERATION, CACHE = "agents/lm/generation.py", "textenvs/lm/kv_cache.py"
COLLECT, METRICS, SAMPLING = "agents/text/collector.py", "agents/text/rollout_metrics.py", "agents/lm/sampling.py"
ENV = "textenvs/envs/vector.py"
PREFERENCE = "textenvs/wrappers/preference.py"
SCORERS = "textenvs/wrappers/scorers.py"
SHAPING = "textenvs/wrappers/kl_shaping.py"
REFERENCE = "textenvs/wrappers/reference.py"
MODEL, BRADLEY_TERRY = "reward_models/model.py", "reward_models/losses.py"
T_POLICY, T_DECISIONS = "tests/agents/lm/test_causal_lm.py", "tests/agents/lm/test_decision_states.py"
T_HEAD = "tests/agents/lm/test_fused_logprobs.py"
T_GENERATION = "tests/agents/lm/test_generation.py"
T_SLOTS = "tests/agents/lm/test_continuous_batching.py"
T_COLLECT = "tests/agents/text/test_collector.py"
T_TEXT_UPDATE = "tests/agents/text/test_update.py"
T_ENV = "tests/textenvs/envs/test_vector.py"
T_PREFERENCE = "tests/textenvs/wrappers/test_preference.py"
T_SHAPING = "tests/textenvs/wrappers/test_kl_shaping.py"
T_REFERENCE = "tests/textenvs/wrappers/test_reference.py"
T_PATHS = "tests/textenvs/wrappers/test_paths.py"
T_EXACT = "tests/textenvs/exact/test_enumeration.py"
T_MODEL, T_BRADLEY_TERRY = "tests/reward_models/test_model.py", "tests/reward_models/test_losses.py"

MUTANTS = (
    Mutant("T3", "log-probs shifted by one: judged from the token itself", DECISIONS, "positions = prompt_lengths[:, None] - 1 + before", "positions = prompt_lengths[:, None] + before", T_POLICY),
    Mutant("T1", "masked tokens are erased from the context", DECISIONS, "rows=pack_rows(prompts, completions)", "rows=pack_rows(prompts, completions.masked_fill(~mask, PAD))", T_DECISIONS),
    Mutant("T3", "states are read at the count of what is learned from", DECISIONS, "before = real.long().cumsum(1) - 1", "before = mask.long().cumsum(1) - 1", T_DECISIONS),
    Mutant("T3", "the value is read after the action", GENERATION, "            values = policy.value_of(decoder.hidden)\n", "            values = policy.value_of(policy.model.get_input_embeddings()(tokens))\n", T_GENERATION),
    Mutant("T3", "the value after a step is that of the step", COLLECT, "values_of_next_steps(generation.values, mask)", "generation.values.clone()", T_COLLECT),
    Mutant("T1", "padding stands between prompt and completion", TRUNK, "return joint.gather(1, order)[:, : int(real.sum(1).max())]", "return joint", T_POLICY),
    Mutant("T1", "decoding: left padding takes up positions", GENERATION, "self._forward(tokens, positions, columns >= pad,", "self._forward(tokens, columns.expand_as(positions), columns >= pad,", T_GENERATION),
    Mutant("T2", "decoding: the position does not move on", GENERATION, "positions = self.lengths[:, None]", "positions = self.lengths[:, None] - (self.column - self.longest_prompt)", T_GENERATION),
    Mutant("T2", "decoding: padding is attended to", GENERATION, "age < self.lengths[:, None]", "age >= 0 * self.lengths[:, None]", T_GENERATION),
    Mutant("T2", "cache compaction moves the wrong rows", GENERATION, "keep[holes] = movers", "keep[holes] = movers.flip(0)", T_GENERATION),
    Mutant("T2", "cache compaction forgets the values", CACHE, "            self.values[holes, :, :end] = self.values[movers, :, :end]\n", "", T_GENERATION),
    Mutant("T2", "max_concurrent_rows: prompts that join stand a column too far to the left", CACHE, "torch.arange(self.column - key_states.shape[-2], self.column, device=source.device)", "torch.arange(self.column - key_states.shape[-2] - 1, self.column - 1, device=source.device)", T_SLOTS),
    Mutant("T2", "max_concurrent_rows: what a row that ended has left is seen", GENERATION, "age < self.lengths[:, None], ragged", "age <= self.lengths[:, None], ragged", T_SLOTS),
    Mutant("T2", "a model that minds where its keys stand gets the plain cache", CACHE, "if any_key_order(trunk):", "if True:", T_GENERATION),
    Mutant("T15", "the logged return leaves out penalties and scaling", COLLECT, "float(rollout.rewards.sum()) / len(prompts)", "float(rows.rewards.sum()) / len(prompts)", T_COLLECT),
    Mutant("S2", "rollouts that were paid otherwise are gone on with", COLLECT, '"missing_eos_penalty": self.missing_eos_penalty,', '"missing_eos_penalty": 0.0,', T_COLLECT),
    Mutant("T2", "max_concurrent_rows: a row draws what belongs to its place", GENERATION, "return self.numbers[steps, self.before + rows]", "return self.numbers[steps, torch.arange(len(rows))]", T_SLOTS),
    Mutant("T2", "reference: a row's cache is taken for another's", REFERENCE, "known = running & (lengths > 1) & (before == self._cached).all(axis=1)", "known = running & (lengths > 1) & ((before != PAD).sum(axis=1) == (self._cached != PAD).sum(axis=1))", T_REFERENCE),
    Mutant("T3", "reference: log-probs shifted by one", REFERENCE, "logits_to_keep=torch.arange(first - 1, width - 1, device=tokens.device)", "logits_to_keep=torch.arange(first, width, device=tokens.device)", T_REFERENCE),
    Mutant("T8", "the temperature is not in the logged log-probs", TOKEN_HEAD, "tokens, temperature=self.sampling.temperature)", "tokens, temperature=1.0)", T_GENERATION),
    Mutant("T8", "logits are multiplied by the temperature", SAMPLING, "logits = logits / self.temperature", "logits = logits * self.temperature", f"{T_POLICY} {T_GENERATION}"),
    Mutant("T8", "top-k keeps one token too many", SAMPLING, "self.top_k - 1 : self.top_k]", "self.top_k : self.top_k + 1]", T_POLICY),
    Mutant("T8", "top-p stops short of its share", SAMPLING, "above = probabilities.cumsum(dim=-1) - probabilities", "above = probabilities.cumsum(dim=-1)", T_POLICY),
    Mutant("T8", "the shortest length counts from the prompt's beginning", DECISIONS, "steps=before[mask]", "steps=positions[mask]", f"{T_GENERATION} {T_POLICY}"),
    Mutant("T8", "most of a long tail is never sampled", SAMPLING, "else torch.float64  # which", "else torch.float32  # which", T_POLICY),
    Mutant("T8", "samples ignore the noise's share of the last token", SAMPLING, "target = torch.minimum(level[:, None].to(wide) * total", "target = torch.minimum(level[:, None].to(wide) * 0.9 * total", f"{T_POLICY} {T_GENERATION}"),
    Mutant("T9", "dropout comes on in training", POLICY, "return super().train(False)", "return super().train(mode)", T_POLICY),
    Mutant("T10", "log-softmax in the model's own precision", SAMPLING, "logits = logits.float()", "logits = logits", T_POLICY),
    Mutant("T10", "the output head's log-softmax in the model's own precision", HEAD, "torch.promote_types(dtype, torch.float32)", "dtype", f"{T_HEAD} {T_POLICY}"),
    Mutant("T12", "the gradient of the entropy has the wrong sign", SAMPLING, "(plogp + probabilities * entropy[:, None]) * -grad[:, None]", "(plogp + probabilities * entropy[:, None]) * grad[:, None]", f"{T_POLICY} {T_HEAD}"),
    Mutant("T8", "the output head multiplies by the temperature", HEAD, "logits /= temperature", "logits *= temperature", T_HEAD),
    Mutant("T8", "the output head's gradient is not divided by the temperature", HEAD, "scale / -ctx.temperature", "scale / -1.0", T_HEAD),
    Mutant("T8", "the output head's gradient goes up for every token", HEAD, "taken] -= 1", "taken] += 1", T_HEAD),
    Mutant("T12", "the output head's entropy has a gradient of the wrong sign", HEAD, "both[part] -= entropy_gradient", "both[part] += entropy_gradient", T_HEAD),
    Mutant("T12", "the output head's entropy misses the chosen token", HEAD, "tokens[part]] += 1", "tokens[part]] += 0", T_HEAD),
    Mutant("T17", "the end-of-text token is left out of the mask", "textenvs/tokens/rows.py", "mask: Mask = self.completions != PAD", "mask: Mask = (self.completions != PAD) & (np.arange(self.completions.shape[1]) < (self.completions != PAD).sum(1, keepdims=True) - (self.stop_reason == EOS)[:, None])", f"{T_PREFERENCE} {T_COLLECT}"),
    Mutant("T4", "the score is paid twice when stepping", PREFERENCE, "rewards = rewards + scores", "rewards = rewards + scores + scores", T_PREFERENCE),
    Mutant("T4", "the score is paid on the first token", PREFERENCE, "rewards[np.arange(len(scores)), last_action_index(rows.mask)] += scores", "rewards[np.arange(len(scores)), 0] += scores", T_PREFERENCE),
    Mutant("T4", "the score lands on padding", PREFERENCE, "rewards[np.arange(len(scores)), last_action_index(rows.mask)] += scores", "rewards[:, -1] += scores", T_PREFERENCE),
    Mutant("T4", "no score for texts that ran out of budget", PREFERENCE, "rewards[np.arange(len(scores)), last_action_index(rows.mask)] += scores", 'rewards[np.arange(len(scores)), last_action_index(rows.mask)] += scores * (rows.stop_reason == "eos")', T_PREFERENCE),
    Mutant("T4", "a used-up budget does not end the text", ENV, "self.lengths - self.prompt_lengths >= self.max_new_tokens", "self.lengths - self.prompt_lengths > self.max_new_tokens", T_ENV),
    Mutant("A4", "a used-up budget truncates", ENV, "truncated = at_budget if self.budget == \"truncate\" else np.zeros_like(running)", "truncated = at_budget", T_ENV),
    Mutant("A4", "a budget that truncates is not bootstrapped", COLLECT, "final[:, None], next_values)", "0.0 * final[:, None], next_values)", T_COLLECT),
    Mutant("T13", "the price of KL has the wrong sign", SHAPING, "rewards - np.float32(self._beta) * kl if", "rewards + np.float32(self._beta) * kl if", T_SHAPING),
    Mutant("T13", "KL is charged twice when playing", SHAPING, "rewards = self._shaped(rows.rewards, kl)", "rewards = self._shaped(self._shaped(rows.rewards, kl), kl)", T_SHAPING),
    Mutant("T13", "KL is charged twice when stepping", SHAPING, "return observations, self._shaped(rewards, kl), ", "return observations, self._shaped(self._shaped(rewards, kl), kl), ", T_SHAPING),
    Mutant("T13", "two KL wrappers may be stacked", "textenvs/envs/wrapper.py", "if type(inner) is type(self):", "if False:", T_SHAPING),
    Mutant("T13", "resets are charged for", SHAPING, "kl[running] = self._acting_logprobs(actions)[running] - self._reference_logprobs(actions, running)[running]", "kl = self._acting_logprobs(actions) - self._reference_logprobs(actions, running)", T_SHAPING),
    Mutant("T6", "what the reference says at padding is charged", SHAPING, "return as_numbers(np.where(mask, array, 0), mask.shape, name)", "return as_numbers(array, mask.shape, name)", f"{T_SHAPING} {T_PATHS}"),
    Mutant("T13", "log-probs handed over are used for every later step", ENV, "        actions = self.check_actions(actions)\n        self._handed = None\n", "        actions = self.check_actions(actions)\n", f"{T_SHAPING} {T_ENV}"),
    Mutant("T12", "the KL's controller lowers the price when the policy strays", KL_PRICE, "beta * (1.0 + error * episodes / self.horizon)", "beta * (1.0 - error * episodes / self.horizon)", T_COLLECT),
    Mutant("T12", "an annealed price goes beyond its end", KL_PRICE, "return min(moved, self.end) if self._step > 0 else max(moved, self.end)", "return max(moved, 0.0)", T_COLLECT),
    Mutant("T12", "an annealed price begins at its end", COLLECT, "self._kl_shaping.beta = kl_controller.start", "pass", T_COLLECT),
    Mutant("T12", "KL per sequence is reported per token", METRICS, '"kl_per_sequence": float(rows.kl.sum() / len(mask))', '"kl_per_sequence": float(rows.kl.sum() / count)', T_COLLECT),
    Mutant("T15", "the reported surprisal counts padding", METRICS, "float(-rows.logprobs[mask].mean())", "float(-rows.logprobs.mean())", T_COLLECT),
    Mutant("T7", "the missing end is charged to texts that ended", COLLECT, '(rows.stop_reason == "length")', '(rows.stop_reason == "eos")', T_COLLECT),
    Mutant("T7", "the missing end is charged to every text", COLLECT, 'self.missing_eos_penalty * (rows.stop_reason == "length")', "self.missing_eos_penalty", T_COLLECT),
    Mutant("S2", "resume forgets the KL's price", SHAPING, '        self.beta = state["beta"]\n', "", f"{T_SHAPING} {T_COLLECT}"),
    Mutant("S2", "resume forgets the tokens' generator", COLLECT, 'self.generator.set_state(torch.as_tensor(state["generator"], dtype=torch.uint8).cpu())', "pass", T_COLLECT),
    Mutant("S2", "resume forgets the order of prompts", ENV, 'self._sampler.load_state_dict(state["sampler"])', "pass", T_ENV),
    Mutant("T16", "the reward model scores the last position, padding or not", MODEL, "last = (attention_mask.long() * steps).argmax(dim=1)", "last = torch.full_like(attention_mask[:, 0].long(), input_ids.shape[1] - 1)", T_MODEL),
    Mutant("T16", "the reward model's positions count padding", MODEL, "(attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)", "torch.arange(input_ids.shape[1]).expand_as(input_ids)", T_MODEL),
    Mutant("T16", "the reward model forgets its calibration", MODEL, "(self.raw(input_ids, attention_mask) - self.mean) / self.std", "self.raw(input_ids, attention_mask)", T_MODEL),
    Mutant("T16", "an unfinished text gets an end", MODEL, "[[*bos, *body, eos] if flag else [*bos, *body]", "[[*bos, *body, eos] if True else [*bos, *body]", T_MODEL),
    Mutant("T16", "Bradley–Terry prefers the rejected text", BRADLEY_TERRY, "lead = chosen - rejected if", "lead = rejected - chosen if", T_BRADLEY_TERRY),
    Mutant("T16", "the margin helps instead of being asked for", BRADLEY_TERRY, "else chosen - rejected - margin", "else chosen - rejected + margin", T_BRADLEY_TERRY),
    Mutant("T16", "the weights of comparisons are left out of their sum", BRADLEY_TERRY, "total = weights.sum()", "total = torch.tensor(float(len(values)))", T_BRADLEY_TERRY),
    Mutant("T16", "a foreign tokenizer's ids are handed over", SCORERS, "(theirs is None or (own is not None and same_tokenizer(theirs, own)))", "True", T_PREFERENCE),
    Mutant("T12", "the enumerated optimum tilts the wrong way", "textenvs/exact/enumeration.py", "ref_logprobs + (q - values[:, :, None]) / beta", "ref_logprobs - (q - values[:, :, None]) / beta", T_EXACT),
)  # fmt: skip
