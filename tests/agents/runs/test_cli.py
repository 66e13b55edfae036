from dataclasses import dataclass

import gymnasium
import pytest

from agents.runs.cli import enter
from agents.runs.run_dir import RunDirError


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


def test_ctrl_c_ends_with_130_whether_raised_or_reported(capsys):
    def raised(config):
        raise KeyboardInterrupt

    assert enter(Config, raised, description=None, arguments=[]) == 130
    assert enter(Config, lambda config: {"interrupted": True}, description=None, arguments=[]) == 130
    said = capsys.readouterr().err
    assert said.count("stopped") == 2
    assert "nothing half-written" in said


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
