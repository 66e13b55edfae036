"""The planted mistakes of rows and their rewards; see `scripts.mutation.table`."""

from __future__ import annotations

# ruff: noqa: E501
from scripts.mutation import Mutant

REWARDS = (
    Mutant("L1", "missing weights stay random", "textenvs/lm/loading.py", '("are missing", sorted(missing))', '("are missing", [])'),
    Mutant("L1", "weights that no layer reads are passed over", "textenvs/lm/loading.py", 'sorted(unexpected))', '[])'),
    Mutant("L2", "the end that a chat template writes is not found", "textenvs/tokens/end_of_text.py", '"chat template": template_end(tokenizer),', '"chat template": (),'),
    Mutant("L4", "decoding with a cache is not tried at load", "agents/lm/model_checks.py", "        check_decoding(policy)\n", "", "tests/agents/lm/test_families.py"),
    Mutant("L4", "a last MLP that runs several times is skipped where it is not read", "textenvs/lm/packed_forward.py", "lengths.new_tensor([0, 1]))", "lengths.new_tensor([0, 0]))", "tests/agents/lm/test_families.py"),
    Mutant("L4", "a composite model's whole is taken for its part for text", "textenvs/lm/packed_forward.py", "return trunk if config.get_text_config(decoder=True) is config else trunk.get_decoder()", "return trunk", "tests/agents/lm/test_families.py"),
    Mutant("L2", "only the first end of text ends a text", "textenvs/tokens/end_tokens.py", "torch.tensor(end_tokens(eos_token_id),", "torch.tensor(end_tokens(eos_token_id)[:1],", "tests/textenvs/tokens/test_end_of_text.py"),
    Mutant("L3", "a text gets the columns of the text before it", "textenvs/envs/vector.py", "[self.prompts.columns[number] for number in numbers]", "[self.prompts.columns[number] for number in np.roll(numbers, 1)]", "tests/textenvs/wrappers/test_preference.py"),
    Mutant("L3", "a stepped text gets the columns of another prompt", "textenvs/envs/vector.py", "for number in self._rows.numbers[indices]]", "for number in np.roll(self._rows.numbers[indices], 1)]", "tests/textenvs/wrappers/test_preference.py"),
    Mutant("L3", "info has the columns of the sub-environment's number", "textenvs/tokens/prompts.py", "values[index], has[index] = self.columns[number][name], True", "values[index], has[index] = self.columns[index].get(name), True", "tests/textenvs/envs/test_vector.py"),
    Mutant("L5", "a reward that does not apply counts as 0", "textenvs/wrappers/preference.py", "return np.ma.masked_invalid(exact) if np.isnan(exact).any() else exact", "return np.nan_to_num(exact)", "tests/textenvs/wrappers/test_scorers.py"),
    Mutant("L5", "scores stand in the order in which slow rewards end", "textenvs/wrappers/scorers.py", "zip(self._members, calls, strict=True)", "zip(self._members, reversed(calls), strict=True)", "tests/textenvs/wrappers/test_scorers.py"),
    Mutant("L6", "pass@k takes the first samples for the best", "agents/evaluation/best_of_n_estimate.py", "np.sort(right, axis=1) @", "right @", "tests/agents/recipes/rlhf/test_verifiable.py"),
    Mutant("L6", "rows without a score count as wrong", "agents/evaluation/metrics.py", "greedy=greedy[applies] >= rule.least, sampled=sampled[applies]", "greedy=greedy >= rule.least, sampled=sampled", "tests/agents/recipes/rlhf/test_verifiable.py"),
)  # fmt: skip
