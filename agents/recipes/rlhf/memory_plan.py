"""What a text run will take, role by role and for each way its models can live, before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

from agents.lm.loading import DTYPES, resolved, weightless
from agents.lm.lora import LoraOptions
from agents.lm.memory import Layout, Workload, num_bytes, plan
from agents.recipes.rlhf.config import TrainTextConfig
from agents.recipes.rlhf.models import model_path
from agents.recipes.rlhf.prompts import prompt_reader, prompt_sets
from agents.recipes.rlhf.rewards import reward_sources, stands_on
from agents.recipes.rlhf.task import Memory
from agents.runs.flags import json_object
from reward_models.ensemble import is_ensemble, member_folders
from reward_models.files import base_of
from reward_models.lora import ADAPTER
from textenvs.tokens.prompts import load_prompts
from textenvs.tokens.tokenizers import load_tokenizer

MIB = 2**20


PROCESSES = 1, 2, 4, 8
"""Numbers that a sharded run is planned for, beside that of the launcher."""


def planned_bytes(config: TrainTextConfig) -> dict[str, dict[str, int]]:
    """Bytes of each role under each ``memory``: ``{"full": {"policy_weights": ..., "total": ...}, ...}``.

    Of a sharded run those of one process, by the number of processes: ``{"2": {"policy_weights": ...}, ...}``.

    Raises:
        ValueError, OSError: if model, tokenizer or prompts cannot be read.
    """
    path = model_path(config)
    longest = _longest_prompt(config, path)
    sharded, launched = config.shard != "none", int(os.environ.get("WORLD_SIZE", "1"))
    if sharded:
        return {str(n): _roles(config, path, longest, config.memory, n) for n in sorted({*PROCESSES, launched})}
    return {memory: _roles(config, path, longest, memory, 1) for memory in get_args(Memory)}


def _roles(config: TrainTextConfig, path: str, longest: int, memory: Memory, processes: int) -> dict[str, int]:
    """Bytes of each role in one of ``processes``."""
    by_tokens = config.microbatch_rows(longest + config.max_new_tokens)
    own = min(-(-config.batch_size // processes), config.max_concurrent_rows or config.batch_size)
    minibatch = -(-min(config.minibatch_size or config.batch_size, config.batch_size) // processes)
    workload = Workload(
        rollout_rows=own,
        update_rows=min(by_tokens or config.microbatch_size or minibatch, minibatch),
        prompt_tokens=longest,
        new_tokens=config.max_new_tokens,
    )
    layout = Layout(
        memory=memory,
        critic=config.critic(memory),
        lora=LoraOptions(rank=config.lora_rank, alpha=config.lora_alpha),
        starts_from_adapter=memory == "adapters" and config.adapter is not None,
        dtype=DTYPES[resolved(config.dtype, config.device)],
        recompute=config.gradient_checkpointing,
        processes=processes,
        gathers=processes > 1 and not config.shard_rollouts,
    )
    return plan(weightless(path).config, layout, workload, reward=_reward_bytes(config, memory, path))


def as_text(table: dict[str, dict[str, int]], chosen: str) -> str:
    """The plan for a reader: MiB, a column for each ``memory`` or number of processes, a star at the chosen one."""
    heads = [f"{memory}*" if memory == chosen else memory for memory in table]
    lines = [f"{'MiB' if chosen in table else 'MiB, by processes':20}" + "".join(f"{head:>12}" for head in heads)]
    for role in list(table.values())[-1]:
        lines.append(f"{role:20}" + "".join(f"{roles.get(role, 0) / MIB:12.1f}" for roles in table.values()))
    beyond = [roles["total"] - roles["policy_weights"] for roles in table.values()]
    lines.append(f"{'beyond the policy':20}" + "".join(f"{number / MIB:12.1f}" for number in beyond))
    lines.append("total: update, rollout and checkpoint take turns, only the largest counts; libraries are not in it")
    return "\n".join(lines)


def _longest_prompt(config: TrainTextConfig, path: str) -> int:
    tokenizer = load_tokenizer(path, json_object(config.template_kwargs))
    prompts, _ = prompt_sets(config, prompt_reader(config, tokenizer))
    return int(load_prompts(prompts, tokenizer, vocab_size=len(tokenizer)).lengths.max())


def _reward_bytes(config: TrainTextConfig, memory: Memory, path: str) -> int:
    """All reward models' weights; a model under adapters counts, too, unless it is the policy's trunk at ``path``."""
    size = 0
    for given in reward_sources(config):
        if not Path(given).is_dir():
            continue
        folders = member_folders(given) if is_ensemble(given) else [Path(given)]
        for folder in folders:
            size += sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            size += sum(file.stat().st_size for file in (folder / ADAPTER).glob("*.safetensors"))
        if memory == "adapters" and all(stands_on(folder, path) for folder in folders):
            continue
        size += sum(_float32_bytes(base) for base in {base_of(folder) for folder in folders} if base is not None)
    return size


def _float32_bytes(model: str) -> int:
    """Of a causal LM at a directory, or of a name, as it will be loaded."""
    whole = weightless(model)
    return num_bytes([*whole.parameters(), *whole.buffers()])
