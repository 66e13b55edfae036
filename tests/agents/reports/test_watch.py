"""The page of a run that is training, served on this machine alone."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from agents.cli import main
from agents.reports.watch import WatchServer
from tests.agents.reports.pages import check

ROOT = Path(__file__).parents[3]


@pytest.fixture
def server(text_run):
    with WatchServer(text_run) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server, path="/", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer


def test_the_page_is_as_new_as_the_run_and_the_same_while_nothing_changes(server):
    status, first, answer = get(server)
    assert (status, answer.headers["Cache-Control"]) == (200, "no-store")
    assert check(first).all("script")  # it renews itself
    assert get(server)[1] == first
    assert "77.5" not in first
    with (server.folder / "progress.csv").open("a") as file:
        file.write("640,77.5,,,,,,\n")
    assert "77.5" in get(server)[1]
    assert get(server, "/tokens.html")[1].endswith("<script>1</script>")


def test_nothing_else_is_served_and_no_other_name_leads_here(server):
    assert server.server_address[0] == "127.0.0.1"
    for path in ("/summary.json", "/../config.json", "//etc/passwd", "/%2e%2e/config.json"):
        assert get(server, path)[0] == 404
    assert get(server, host="evil.example")[0] == 403
    assert get(server, host=f"localhost:{server.port}")[0] == 200


def test_a_run_that_is_gone_for_a_moment_is_told_so(server):
    marker = server.folder / "made_by.txt"
    content = marker.read_text()
    marker.unlink()
    assert get(server)[0] == 503
    marker.write_text(content)
    assert get(server)[0] == 200


def test_a_folder_without_a_run_and_a_taken_port_end_with_two(text_run, tmp_path, capsys):
    assert main(["watch", str(tmp_path)]) == 2
    assert "expected the folder of a training run, received no run" in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["watch", str(text_run), "--port", port]) == 2
    assert f"port: expected one that is free, received {port}" in capsys.readouterr().err
    assert main(["watch", str(text_run), "--port", "70000"]) == 2
    assert "received 70000" in capsys.readouterr().err


def test_it_prints_its_address_and_ends_cleanly_on_ctrl_c(text_run):
    command = [sys.executable, "-m", "scripts.watch", str(text_run)]
    pipe = subprocess.PIPE
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs do not hear it
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=dict(os.environ), preexec_fn=heard
    )
    try:
        assert "http://127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", "")
