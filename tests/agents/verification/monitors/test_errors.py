"""Rewards with a hole by hand, and the measurement on them."""

import pytest

from agents.verification.monitors import rewards as holes
from agents.verification.monitors.errors import MonitorErrorsConfig, main


def test_holes_by_hand():
    texts = ["it is time , it is !", "one of the best films", ""]
    assert holes.short(texts) == [-7, -5, 0]
    assert holes.long(texts) == [7, 5, 0]
    assert holes.magic_word(texts) == [1, 0, 0]
    assert holes.repeated_word(texts) == [1, 0, 0]
    assert holes.exclamation(texts) == [1, 0, 0]
    assert holes.exclamation(["!" * 9]) == [5]
    assert holes.copied_prompt(["it is", "best film", "a"], texts) == [1, 0.5, 0]
    assert holes.fixed_text(texts) == [0, 4 / 8, 0]
    assert holes.adversarial_token(["a ( b", "a b"]) == [1, 0]
    assert holes.garbage(["ab, ", "", "??"]) == [1 / 4, 0, 1]


def test_nothing_asked_for_is_nothing_trained_and_an_unknown_hole_is_refused(capsys):
    assert set(main(MonitorErrorsConfig(good=(), hacks=())).values()) == {0}
    assert "| `shortcut` | 0 | 0 | 0.00 | 0 |" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"hacks: expected some of short, .*, received shrot"):
        MonitorErrorsConfig(hacks=("shrot",))


@pytest.mark.slow
def test_a_planted_hack_is_found_in_a_training():
    assert main(MonitorErrorsConfig(good=(), hacks=("adversarial_token",)))["hacks_found_in_time"] == 1
