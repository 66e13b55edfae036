"""The planted mistakes of engines and corrections; see `scripts.mutation.table`."""

# ruff: noqa: E501

from __future__ import annotations

from scripts.mutation import Mutant

ENGINES = (
    Mutant("E1", "the importance ratio is turned round", "agents/functional/correction.py", "fill_masked(logprobs - behavior_logprobs, mask)", "fill_masked(behavior_logprobs - logprobs, mask)", "tests/agents/functional/test_correction.py"),
    Mutant("E1", "a row's weight is the mean of its tokens' ratios", "agents/functional/correction.py", "log_ratio.sum(1, keepdim=True)", "log_ratio.mean(1, keepdim=True)", "tests/agents/functional/test_correction.py"),
    Mutant("E1", "a mask lets every large ratio pass", "agents/functional/correction.py", "(ratio > high) | (ratio < low)", "(ratio < low)", "tests/agents/functional/test_correction.py"),
    Mutant("E1", "truncation keeps large weights", "agents/functional/correction.py", "ratio.clamp(max=high) if truncates", "ratio if truncates", "tests/agents/functional/test_correction.py"),
    Mutant("E1", "the weights are computed and not used", "agents/text/objective.py", "else batch.weights * batch.advantages", "else batch.advantages", "tests/agents/text/test_writer.py"),
    Mutant("E1", "the KL is charged on the sampler's log-probs", "agents/text/behavior.py", 'texts["logprobs"], values = fill_masked(own.logprobs, exists),', 'texts["logprobs"], values = texts["logprobs"],', "tests/agents/text/test_writer.py"),
    Mutant("E1", "an adapter is sent without its scale", "agents/lm/lora.py", '(scale if ".lora_B." in name else 1.0)', "1.0", "tests/agents/engines/test_vllm.py"),
    Mutant("E2", "a text that was cut short is learned from", "agents/engines/vllm.py", "if not whole or len(tokens) > budget or", "if len(tokens) > budget or", "tests/agents/engines/test_vllm.py"),
    Mutant("E2", "a text by other weights is learned from", "agents/engines/vllm.py", "if not self.adapter_only and versions !=", "if False and versions !=", "tests/agents/engines/test_vllm.py"),
    Mutant("E2", "finished rows are asked for again", "agents/engines/vllm.py", "if request not in self._finished]", "]", "tests/agents/engines/test_vllm.py"),
    Mutant("E2", "a server that was started anew keeps its old weights", "agents/engines/vllm.py", "if not loads or self._is_loaded():", "if True:", "tests/agents/engines/test_vllm.py"),
    Mutant("E3", "a batch that is too stale is learned from", "agents/text/writer.py", "found is None or self.version - found.version > self.ahead", "found is None", "tests/agents/text/test_writer.py"),
    Mutant("E3", "a resumed run writes the batch again that was written ahead", "agents/text/writer.py", "if ahead is not None and self.ahead:", "if False:", "tests/agents/text/test_writer.py"),
)  # fmt: skip
