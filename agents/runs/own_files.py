"""Which files in a run's folder are the program's own: the only ones that it ever deletes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from reward_models.aside import PART

MARKER = "made_by.txt"
"""The script whose run it is, and a line with when it began. Written first; a folder without it is no run."""
RUN_FILES = (
    "summary.json", "config.json", "state.json", "samples.json", "progress.csv", "events.out.tfevents.*", "report.html",
    "machine.json", "monitors.json",
    "last.safetensors", "best.safetensors", "checkpoint.safetensors", "checkpoint_[0-9]*.safetensors",
    "tokens.html", "monitors.json", "frontier.csv", "frontier.json",
    "frontier.png", "best_of_n.csv", "reliability.json", "reliability.png", "sentences.jsonl", "ppo.png", "text.png",
    "cartpole.png", "curves.png", "table.md", "verify.md", "prompts.txt", "prompts.json", MARKER,
)  # fmt: skip
MODELS = ("model", "adapter", "member_*", "trunk", "shards_[0-9]*")
"""Folders that hold a model, or a checkpoint's part of each process."""
MODEL_COMMANDS = ("train_text", "train_language_model", "train_reward_model", "pretrained", "pipeline", "demo", "")
"""Commands that write such folders; "" is what a model's own folder says."""
STAGES: dict[str, tuple[str, ...]] = {
    "pipeline": ("base", "fine_tuned", "reward_model", "ppo"),
    "demo": ("cartpole", "reward_model", "text"),
    "benchmark_memory": ("full", "shared", "adapters"),
    "kill_and_resume": ("uninterrupted", "kill_*"),
}
"""Runs that a command makes inside its own; any other run that lies there is another one's."""
WHOLE: dict[str, tuple[str, ...]] = {"benchmark_control": ("runs",), "benchmark_text": ("runs", "rows")}
"""Folders of a benchmark in which every file is its own."""
MODEL_FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "origin.json",
    "adapter_config.json", "adapter_model.safetensors", "adapter_*.safetensors", "reward_model.json",
    "reward_ensemble.json", "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.*", "prompts.json", "text_*.json",
    "shard-*.safetensors",
)  # fmt: skip


def own_files(folder: Path, patterns: tuple[str, ...] = RUN_FILES) -> Iterator[Path]:
    """The files in ``folder`` of a run that its command wrote, stages and models included; links are not followed."""
    made_by = script_of(folder) or ""
    for path in sorted(folder.iterdir()):
        name = re.sub(r"(\.\d+)?\.part$", "", path.name)
        if not path.is_dir() or path.is_symlink():
            if _matches(name, patterns):
                yield path
        elif _matches(name, WHOLE.get(made_by, ())):
            yield from (below for below in sorted(path.rglob("*")) if below.is_symlink() or not below.is_dir())
        elif _matches(name, STAGES.get(made_by, ())) and script_of(path) is not None:
            yield from own_files(path)
        elif made_by in MODEL_COMMANDS and _matches(name, MODELS):
            yield from own_files(path, MODEL_FILES)


def script_of(folder: Path) -> str | None:
    """The command that made the run in ``folder``; None if it is no run."""
    return read_marker(folder)[0] if (folder / MARKER).is_file() else None


def read_marker(folder: Path) -> tuple[str, str]:
    """The command that made the run in ``folder``, and when it began, ISO, or "" in runs that do not say so."""
    command, _, began = (folder / MARKER).read_text(encoding="utf-8", errors="replace").strip().partition("\n")
    return command, began


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def delete_own_files(
    folder: Path, keep: tuple[str, ...] = (), *, patterns: tuple[str, ...] = RUN_FILES, parts_only: bool = False
) -> None:
    """Delete a command's own files in ``folder`` and the folders that this empties; everything else stays.

    A summary is deleted first, so that what a kill leaves never looks finished. Names directly in ``folder`` that are
    in ``keep`` stay; with ``parts_only``, all but unfinished parts of files and folders, which a kill left.
    """
    doomed = [path for path in own_files(folder, patterns) if path.parent != folder or path.name not in keep]
    emptied = {parent for path in doomed for parent in path.parents if folder in parent.parents}
    emptied |= {path for path in folder.iterdir() if path.is_dir() and _matches(path.name.removesuffix(PART), MODELS)}
    if parts_only:
        doomed = [path for path in doomed if path.relative_to(folder).parts[0].endswith(PART)]
        emptied = {path for path in emptied if path.relative_to(folder).parts[0].endswith(PART)}
    for path in sorted(doomed, key=lambda path: path.name != "summary.json"):
        path.unlink()
    for path in sorted(emptied, reverse=True):
        if not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def put_in_place(aside: Path, path: Path) -> None:
    """Let the model in ``aside`` replace the one at ``path``; files there that no model consists of stay."""
    if path.exists():
        delete_own_files(path, patterns=MODEL_FILES)
    if not path.exists() or not any(path.iterdir()):
        if path.exists():
            path.rmdir()
        aside.replace(path)
        return
    for each in aside.iterdir():
        if each.is_dir():
            put_in_place(each, path / each.name)
        else:
            each.replace(path / each.name)
