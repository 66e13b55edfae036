"""The command ``textenvs``: what it lists, what it refuses, and that its help waits for nothing heavy."""

import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

from agents.cli import COMMANDS, main, run

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_every_command_on_a_line_of_its_own(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line for line in lines[lines.index("commands:") + 1 :]}
    assert list(listed) == [
        "train-control", "train-text", "train-reward-model", "train-language-model", "serve", "evaluate", "compare",
        "watch", "verify", "frontier", "best-of-n", "plan", "pipeline", "guess", "arena", "demo",
    ]  # fmt: skip
    assert all(len(line.split()) > 4 for line in listed.values())
    assert main([]) == 0


def test_an_unknown_command_ends_with_two_and_the_nearest_name(capsys):
    assert main(["train_txt"]) == 2
    assert "expected a command, received 'train_txt': did you mean train-text?" in capsys.readouterr().err
    assert main(["zzz"]) == 2
    assert "--help lists the commands" in capsys.readouterr().err


def test_the_version_is_the_installed_packages(capsys, monkeypatch):
    monkeypatch.setattr(metadata, "version", {"textenvs": "1.2.3"}.__getitem__)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "1.2.3\n"


def test_every_command_has_a_command_line_and_a_door():
    doors = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    for name, (module, _) in COMMANDS.items():
        assert callable(import_module(module).command_line)
        door = {"evaluate": "evaluate_agent"}.get(name, name.replace("-", "_"))
        assert door in doors
        assert f'run("{name}")' in (ROOT / "scripts" / f"{door}.py").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_neither_torch_nor_transformers_nor_gymnasium(command):
    code = (
        "import sys\n"
        "from agents.cli import main\n"
        "try: main([sys.argv[1], '--help'])\n"
        "finally: assert not {'torch', 'transformers', 'gymnasium', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"textenvs {command} --" in done.stdout  # an example
    assert "usage" in done.stdout.lower()


def test_help_of_train_text_stands_in_groups_with_the_algorithms_own_defaults(capsys):
    def shown(*flags):
        with pytest.raises(SystemExit) as leaving:
            run("train-text", [*flags, "--help"])
        assert leaving.value.code == 0
        return capsys.readouterr().out

    said = shown()
    for group in ("Run", "Machine", "Model", "Prompts", "Rewards", "KL", "Memory", "Algorithm", "Advantages", "Loss",
                  "Update"):  # fmt: skip
        assert f"{group} options" in said
    assert "passes over each batch (default: 2)" in said
    assert "passes over each batch (default: 1)" in shown("--algorithm", "rloo")
