import signal
from dataclasses import dataclass

import gymnasium
import pytest

from agents.functional.schedules import Linear
from agents.runs.cli import enter, parse, peek
from agents.runs.run_dir import RunDirError
from agents.runs.signals import Interrupted


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 1

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, received {self.steps}")


class Refused(RuntimeError):
    pass


@pytest.mark.parametrize(
    "fault",
    [RunDirError("in use"), ValueError("in use"), OSError(28, "in use"), gymnasium.error.NameNotFound("in use")],
    ids=lambda fault: type(fault).__name__,
)
def test_what_cannot_be_used_is_said_and_ends_with_two(fault, capsys):
    def main(config):
        raise fault

    assert enter(Config, main, description=None, arguments=[]) == 2
    assert "in use" in capsys.readouterr().err


def test_settings_out_of_range_end_with_two(capsys):
    with pytest.raises(SystemExit) as leaving:
        enter(Config, lambda config: {}, description=None, arguments=["--steps", "0"])
    assert leaving.value.code == 2
    assert "at least 1, received 0" in capsys.readouterr().err


def test_a_signal_gives_the_exit_code_that_shells_give_it(capsys):
    def raised(config):
        raise KeyboardInterrupt

    assert enter(Config, raised, description=None, arguments=[]) == 130
    assert "nothing half-written" in capsys.readouterr().err

    def terminated(config):
        raise Interrupted("the run is kept", signal.SIGTERM)

    assert enter(Config, terminated, description=None, arguments=[]) == 143
    assert "stopped: the run is kept" in capsys.readouterr().err


def test_a_refusal_of_its_own_has_an_exit_code_of_its_own():
    def main(config):
        raise Refused("no")

    assert enter(Config, main, description=None, arguments=[], refusals={Refused: 1}) == 1


def test_our_own_faults_show_their_traceback():
    def main(config):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        enter(Config, main, description=None, arguments=[])


def test_the_summary_is_printed_a_line_a_figure(capsys):
    assert enter(Config, lambda config: {"score": 0.5, "env": "x"}, description=None, arguments=[]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["score", "0.5000"], ["env", "x"]]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed: how fast."""

    rate: float | Linear = 0.5
    """per second"""


@dataclass(frozen=True, kw_only=True)
class Grouped(Config, Speed):
    """Where: a folder."""

    folder: str
    """of everything"""
    rate: float | Linear = 0.25
    """per minute"""


def read(*arguments, **defaults):
    return parse(Grouped, description=None, arguments=[*arguments, "--folder", "x"], defaults=defaults)


def test_inherited_settings_are_flags_in_groups_without_prefixes_and_the_newest_default_and_docstring(capsys):
    assert read() == Grouped(folder="x")
    assert read("--steps", "3", "--rate", "2") == Grouped(folder="x", steps=3, rate=2.0)
    assert read(steps=7).steps == 7
    with pytest.raises(SystemExit):
        read("--help")
    said = capsys.readouterr().out
    assert said.index("Where options") < said.index("Speed options") < said.index("per minute")
    assert "per second" not in said


def test_a_schedule_is_a_number_or_start_and_end():
    assert read("--rate", "4e-4:1e-4").rate == Linear(4e-4, 1e-4)
    assert read(rate=Linear(2.0)).rate == Linear(2.0, 0.0)


def test_a_grouped_configuration_out_of_range_ends_with_two(capsys):
    with pytest.raises(SystemExit) as leaving:
        read("--steps", "0")
    assert leaving.value.code == 2
    assert "at least 1, received 0" in capsys.readouterr().err


def test_a_flag_can_be_read_ahead_in_every_way_it_is_written():
    assert peek(["--kl-in", "loss", "--a=b", "x"], "kl_in", "a", "c") == {"kl_in": "loss", "a": "b"}
    assert peek(["--kl_in=loss"], "kl_in") == {"kl_in": "loss"}
    assert peek(["--a", "1", "--b=2", "--a=3", "--b", "4"], "a", "b", repeated="b") == {"a": "3", "b": ["2", "4"]}
