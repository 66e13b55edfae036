"""A tenth of the malformed inputs, and that each way of answering is told from the others."""

import sys

from scripts.malformed.run import Config, main, throw
from scripts.malformed.table import Case, make_files


def test_a_tenth_of_the_malformed_inputs_is_answered_clearly():
    found = main(Config(every=10))
    assert found.pop("tried") == found.pop("clear") >= 100
    assert set(found.values()) == {0}


def test_each_way_of_answering_is_told_from_the_others(tmp_path):
    files = make_files(tmp_path)

    def fail(fault):
        raise fault

    for call, kind in (
        (lambda: fail(ValueError("gamma: expected a number, received 'x'")), "clear"),
        (lambda: fail(ValueError("gamma: this will not do")), "silent"),
        (lambda: fail(ValueError("a number, received 'x'")), "silent"),
        (lambda: None, "silent"),
        (lambda: fail(KeyError("gamma 'x'")), "traceback"),
        (lambda: sys.exit(1), "traceback"),
        (lambda: files["ROWS"].unlink(), "lost"),
    ):
        assert throw(Case("", ("gamma", "'x'"), call=call), files)[0] == kind
