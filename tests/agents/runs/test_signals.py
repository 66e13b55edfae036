"""What signals do: at once they end a command, in training after the update in progress."""

import os
import signal

import pytest

from agents.runs.cli import enter
from agents.runs.run_dir import RunDir
from agents.runs.signals import Interrupted, sigterm_raises, stop_on_signal
from tests.agents.runs.test_lifecycle import Flags


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_and_the_second_does_not(signum):
    usual = signal.getsignal(signum)
    with stop_on_signal() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signum)
        assert stop.signum == signum
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signum)
    assert signal.getsignal(signum) is usual


def test_before_and_after_training_sigterm_ends_at_once():
    usual = signal.getsignal(signal.SIGTERM)
    with sigterm_raises():
        with stop_on_signal():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is usual


def test_a_command_that_sigterm_ends_before_it_begins_leaves_no_folder(tmp_path, capsys):
    def main(config):
        with RunDir(config.run_dir, script="train_text"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert enter(Flags, main, description=None, arguments=["--run-dir", str(tmp_path / "runs" / "a")]) == 143
    assert not list(tmp_path.iterdir())
    assert "nothing half-written" in capsys.readouterr().err
