"""The planted mistakes of dialogues; see `scripts.mutation.table`."""

from __future__ import annotations

# ruff: noqa: E501
from scripts.mutation import Mutant

DIALOGUES = (
    Mutant("D1", "what environments write is learned from", "agents/text/collector.py", "        mask = tensor(rows.mask)", "        mask = tensor(rows.completions != -1)", "tests/agents/text/test_dialogues.py"),
    Mutant("D2", "a turn is paid a token early", "textenvs/dialogues/conversations.py", "self.rewards[index, rows.lengths[index] - 1] = reply.reward", "self.rewards[index, rows.lengths[index] - 2] = reply.reward", "tests/agents/text/test_dialogues.py"),
    Mutant("D3", "KL is charged for what the environment wrote", "textenvs/wrappers/kl_shaping.py", 'completions), rows.mask, "reference")', 'completions), rows.completions != PAD, "reference")', "tests/agents/text/test_dialogues.py"),
    Mutant("D5", "the end of a turn is written twice", "textenvs/dialogues/bridge.py", "ids if closed else [*self.ends[:1], *ids]", "[*self.ends[:1], *ids]", "tests/textenvs/dialogues/test_dialogues.py"),
    Mutant("D6", "a time limit bootstraps from before the last observation", "textenvs/dialogues/conversations.py", "            rows.write(index, written)", "            rows.write(index, written[: 0 if reason else None])", "tests/textenvs/dialogues/test_dialogues.py"),
    Mutant("D7", "the limit of turns hides that the environment ended", "textenvs/dialogues/conversations.py", "TERMINATED if reply.terminated else", "TERMINATED if reply.terminated and not last_turn else", "tests/textenvs/dialogues/test_dialogues.py"),
    Mutant("D9", "a row's luck depends on what environments answer", "agents/lm/dialogues.py", "noise.of(rows, talk.steps[rows])", "noise.of(rows, talk.filled[rows].clamp(max=noise.drawn))", "tests/agents/text/test_dialogues.py"),
    Mutant("D9", "rows of a group begin with different seeds", "textenvs/dialogues/vector.py", "(numbers // self.group_size).tolist()", "numbers.tolist()", "tests/agents/text/test_dialogues.py"),
    Mutant("D9", "a game leaves its random numbers to everybody", "textenvs/tasks/extras.py", "                self._state = _global_state()\n                _set_global_state(outside)", "                self._state = _global_state()", "tests/textenvs/tasks/test_text_arena.py"),
    Mutant("D9", "a game begins each turn with the same random numbers", "textenvs/tasks/extras.py", "                self._state = _global_state()\n                _set_global_state(outside)", "                _set_global_state(outside)", "tests/textenvs/tasks/test_text_arena.py"),
    Mutant("D9", "a lost session goes on without its turns", "textenvs/tasks/open_env.py", "enumerate(self._episode)", "enumerate(self._episode[:1])", "tests/textenvs/tasks/test_open_env.py"),
    Mutant("D9", "a session that comes back otherwise goes on", "textenvs/tasks/open_env.py", "if now[:-1] != before[:-1]:", "if now[1:-1] != before[1:-1]:", "tests/textenvs/tasks/test_open_env.py"),
    Mutant("L6", "held-out questions are among those to train on", "textenvs/tasks/reasoning_gym.py", "            others.pop(entry[\"question\"], None)", "            pass", "tests/textenvs/tasks/test_reasoning_gym.py"),
    Mutant("D11", "lambda holds within turns and not between them", "agents/text/advantages.py", "torch.where(closing, lam, 1.0)", "torch.where(closing, 1.0, lam)", "tests/agents/text/test_dialogues.py"),
    Mutant("D11", "a turn's discount is applied at each token", "agents/text/advantages.py", "torch.where(closing, gamma * config.gamma_turn, gamma)", "gamma * config.gamma_turn * torch.ones_like(rewards)", "tests/agents/text/test_dialogues.py"),
    Mutant("D11", "rewards to go are not discounted by turns", "agents/functional/group_advantages.py", "sums[:, turn] += gamma * sums", "sums[:, turn] += sums", "tests/agents/text/test_dialogues.py"),
)  # fmt: skip
