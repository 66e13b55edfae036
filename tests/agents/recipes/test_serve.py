"""``textenvs serve``: the server's flags, its plugin, and that it neither outlives the command nor fails in silence."""

import os
import signal
import socket
import stat
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from agents.cli import main
from agents.recipes.commands.serve import PLUGIN, ServeConfig, server_command, write_plugin

ROOT = Path(__file__).parents[3]
STUB = """#!{python}
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
{before}
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
print("pid", os.getpid(), os.environ["VLLM_SERVER_DEV_MODE"], os.environ["PYTHONPATH"].split(os.pathsep)[0], flush=True)
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def stub(folder, before=""):
    path = folder / "python"
    path.write_text(STUB.format(python=sys.executable, before=before))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def serving(python):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "agents.cli", "serve", "--model", "m", "--port", str(port), "--python", python]
    run = "import sys; from agents.cli import main; sys.exit(main(sys.argv[1:]))"
    command[1:3] = ["-c", run]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes), port


def test_the_server_gets_what_the_engine_needs():
    words = server_command(ServeConfig(model="m", lora_rank=8, flags="--tensor-parallel-size 4"), on_cpu=True)
    for flag, value in (
        ("--logprobs-mode", "processed_logprobs"),
        ("--weight-transfer-config", '{"backend": "textenvs_folder"}'),
        ("--max-lora-rank", "8"),
        ("--tensor-parallel-size", "4"),
    ):
        assert words[words.index(flag) + 1] == value
    words = server_command(ServeConfig(model="m", transfer="broadcast"), on_cpu=True)
    assert words[words.index("--weight-transfer-config") + 1] == '{"backend": "textenvs_broadcast"}'


def test_a_server_on_cpus_compiles_nothing():
    words = server_command(ServeConfig(model="m", lora_rank=8), on_cpu=True)
    assert {"--enable-scale-out", "--enforce-eager", "--enable-lora"} <= set(words)
    assert "--enforce-eager" not in server_command(ServeConfig(model="m"), on_cpu=False)


def test_the_plugin_stands_alone_and_names_its_entry_point(tmp_path):
    write_plugin(tmp_path)
    points = ConfigParser()
    points.read(tmp_path / f"{PLUGIN}-0.dist-info" / "entry_points.txt")
    assert dict(points["vllm.general_plugins"]) == {PLUGIN: f"{PLUGIN}.transfer:register"}
    source, group = ((tmp_path / PLUGIN / f"{name}.py").read_text() for name in ("transfer", "group"))
    assert "def register" in source
    for each in (source, group):
        assert "from agents" not in each
        assert "from textenvs." not in each
    imports = [sys.executable, "-c", f"import {PLUGIN}.group as g; print(g.Group)"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert PLUGIN in subprocess.run(imports, env=environment, capture_output=True, text=True, cwd=tmp_path).stdout


def test_it_waits_for_an_answer_and_ends_the_server_with_itself(tmp_path):
    process, port = serving(stub(tmp_path))
    try:
        _, pid, dev_mode, plugins = process.stdout.readline().split()
        assert dev_mode == "1"
        assert (Path(plugins) / PLUGIN / "transfer.py").is_file()
        assert process.stdout.readline() == f"ready: --engine http://127.0.0.1:{port}\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
        assert not Path(plugins).exists()
    finally:
        process.kill()
        process.communicate()


def test_without_vllm_the_command_that_installs_it_is_named(tmp_path, capsys):
    none = tmp_path / "python"
    none.write_text("#!/bin/sh\necho None\n")
    none.chmod(none.stat().st_mode | stat.S_IXUSR)
    assert main(["serve", "--model", "m", "--python", str(none)]) == 2
    assert f"serve needs vLLM: {none} -m pip install vllm==" in capsys.readouterr().err


def test_a_server_that_ends_is_an_error(tmp_path):
    process, _ = serving(stub(tmp_path, before="sys.exit(3)"))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the server ended with exit code 3" in said
