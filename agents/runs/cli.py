"""How every script meets its user: flags in, a clear message and an exit code out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro
from gymnasium.error import Error as GymnasiumError

from agents.runs.run_dir import RunDirError

Config = TypeVar("Config")

BAD_INPUT, INTERRUPTED = 2, 130
EXPECTED = (RunDirError, GymnasiumError, ValueError, OSError, ImportError, RuntimeError, FloatingPointError)
"""What a user's input, disk or missing package may cause; anything else is a fault of ours and shows its traceback."""


def enter(
    config_type: type[Config],
    main: Callable[[Config], dict[str, Any]],
    *,
    description: str | None,
    arguments: Sequence[str] | None = None,
    refusals: dict[type[Exception], int] | None = None,
    show: bool = True,
) -> int:
    """Parse the command line, run ``main``, and say how it went.

    Args:
        config_type: dataclass whose fields are the flags.
        main: what runs; a summary with ``interrupted`` True means that Ctrl-C ended it and what was trained is kept.
        description: above the flags in ``--help``; the script's docstring.
        arguments: instead of ``sys.argv[1:]``.
        refusals: exit codes of exceptions that mean something of their own.
        show: whether to print the summary, a line a figure.

    Returns:
        0; 2 if something received cannot be used; 130 after Ctrl-C; or what ``refusals`` says.
    """
    try:
        config = tyro.cli(config_type, description=description, args=arguments)
        summary = main(config)
    except KeyboardInterrupt as stop:
        print(f"stopped: {str(stop) or 'nothing half-written is left; what was finished is kept'}", file=sys.stderr)
        return INTERRUPTED
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return next((code for kind, code in (refusals or {}).items() if isinstance(error, kind)), BAD_INPUT)
    if show:
        for name, value in summary.items():
            print(f"{name:30} {value:.4f}" if isinstance(value, float) else f"{name:30} {value}")
    if summary.get("interrupted"):
        print(f"stopped: what was trained so far is kept in {getattr(config, 'run_dir', 'the run')}", file=sys.stderr)
        return INTERRUPTED
    return 0
