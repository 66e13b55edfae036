"""The GPU's check runs on a CPU in small, keeps what is done, and says what is missing."""

import json
import subprocess

import pytest
import torch

from agents.verification.checks import at_least, at_most
from scripts.benchmarks.gpu import run as gpu
from scripts.benchmarks.gpu.parts import PARTS, GpuCheckConfig
from scripts.benchmarks.gpu.run import main


@pytest.mark.parametrize("part", ["equality", "decoding", "bfloat16", "update"])
def test_a_part_measures_on_the_cpu(part, tmp_path, monkeypatch):
    from textenvs.lm import sizes

    monkeypatch.setattr(sizes, "GPU", sizes.GPU)  # which a part changes
    precision = torch.get_float32_matmul_precision()
    assert main(GpuCheckConfig(run_dir=str(tmp_path), device="cpu", tiny=True, part=part)) == {}
    torch.set_float32_matmul_precision(precision)
    checks = json.loads((tmp_path / f"{part}.json").read_text())
    assert len(checks) >= 2
    assert not any("nan" in measured for _, _, measured, _ in checks)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["generate", "fsdp", "trl", "vllm"])
def test_a_slow_part_measures_on_the_cpu(part, tmp_path):
    assert main(GpuCheckConfig(run_dir=str(tmp_path), device="cpu", tiny=True, part=part)) == {}
    assert (tmp_path / f"{part}.json").exists()


def test_parts_that_are_there_stay_and_others_are_told_with_their_reason(tmp_path, monkeypatch):
    asked = []

    def run(command, part, timeout):
        asked.append(part)
        if part == "update":
            raise subprocess.TimeoutExpired(command, timeout)
        if part == "trl":
            raise RuntimeError("trl ended with 1: Traceback\nValueError: no such thing")
        check = (at_least if part == "generate" else at_most)("a figure", 1.5, 2.0)
        (tmp_path / f"{part}.json").write_text(json.dumps([check]))

    monkeypatch.setattr(gpu, "run_process", run)
    (tmp_path / "equality.json").write_text("[]")
    summary = main(GpuCheckConfig(run_dir=str(tmp_path), device="cpu", part_s=7))
    assert "equality" not in asked
    assert len(asked) == len(PARTS) - 1
    assert summary == {"passed": 4, "failed": ["generate: a figure", "update", "trl"]}
    table = (tmp_path / "table.md").read_text()
    assert "| update | a result | given up after 7 s | FAIL |" in table
    assert "| trl | a result | ValueError: no such thing | FAIL |" in table
    assert "| generate: a figure | >= 2 | 1.5 | FAIL |" in table
    asked.clear()
    main(GpuCheckConfig(run_dir=str(tmp_path), device="cpu", total_s=0.5))
    assert asked == []
    assert "no time was left: call again" in (tmp_path / "table.md").read_text()
