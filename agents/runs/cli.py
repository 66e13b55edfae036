"""How every command meets its user: flags in groups, a clear message and an exit code out. Imports nothing heavy."""

from __future__ import annotations

import ast
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass
from functools import lru_cache
from importlib import import_module
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from agents.functional.schedules import Linear, Schedule
from agents.runs.run_dir import RunDirError
from agents.runs.signals import sigterm_raises

Config = TypeVar("Config")
Main = Callable[[Config], "dict[str, Any]"]

BAD_INPUT = 2
EXPECTED = (RunDirError, ValueError, OSError, ImportError, RuntimeError, FloatingPointError)
"""What a user's input, disk or missing package may cause; anything else is a fault of ours and shows its traceback."""


def enter(
    config_type: type[Config],
    main: str | Main[Config],
    *,
    description: str | None,
    arguments: Sequence[str] | None = None,
    defaults: dict[str, Any] | None = None,
    refusals: dict[type[Exception], int] | None = None,
    show: bool = True,
) -> int:
    """Parse the command line, run ``main``, and report.

    Args:
        config_type: dataclass whose fields are the flags. Those that it inherits stand in groups: the docstring of the
            class that declares a field begins with the group's title and a colon.
        main: what runs, or its "module:function", imported once the flags are known.
        description: above the flags in ``--help``.
        arguments: instead of ``sys.argv[1:]``.
        defaults: of flags, instead of the fields' own.
        refusals: exit codes of exceptions that mean something of their own.
        show: whether to print the summary, a line a figure.

    Returns:
        0; 2 if something received cannot be used; 130 after Ctrl-C, 143 after SIGTERM; or what ``refusals`` says.
    """
    try:
        config = parse(config_type, description=description, arguments=arguments, defaults=defaults or {})
        with sigterm_raises():
            summary = (imported(main) if isinstance(main, str) else main)(config)
    except KeyboardInterrupt as stop:
        print(f"stopped: {str(stop) or 'nothing half-written is left; what was finished is kept'}", file=sys.stderr)
        return 128 + getattr(stop, "signum", 2)
    except Exception as error:
        if hasattr(error, "__notes__"):  # a user's own code: its place in the run, and its traceback
            print(f"error: {error.__notes__.pop(0)}", file=sys.stderr)
            traceback.print_exception(error)
            return BAD_INPUT
        gymnasium = sys.modules.get("gymnasium")  # only something that imported it can have raised its errors
        if not isinstance(error, EXPECTED if gymnasium is None else (*EXPECTED, gymnasium.error.Error)):
            raise
        print(f"error: {error}", file=sys.stderr)
        return next((code for kind, code in (refusals or {}).items() if isinstance(error, kind)), BAD_INPUT)
    if show:
        for name, value in summary.items():
            print(f"{name:30} {value:.4f}" if isinstance(value, float) else f"{name:30} {value}")
    return 0


def command(
    config_type: type[Config], main: str | Main[Config], description: str | None, **options: Any
) -> Callable[..., int]:
    """The ``command_line`` of a command: takes arguments (None: ``sys.argv[1:]``) and returns what `enter` does."""

    def command_line(arguments: Sequence[str] | None = None) -> int:
        return enter(config_type, main, description=description, arguments=arguments, **options)

    return command_line


def imported(path: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def peek(arguments: Sequence[str] | None, *names: str, repeated: str | None = None) -> dict[str, Any]:
    """The values of a few flags before all are parsed, where other flags' defaults depend on them: of one that is given
    again the last, of ``repeated`` a list of all."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    found: dict[str, Any] = {}
    for argument, following in zip(given, [*given[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in names:
            value = value if equals else following
            found[name] = [*found.get(name, ()), value] if name == repeated else value
    return found


def parse(
    config_type: type[Config], *, description: str | None, arguments: Sequence[str] | None, defaults: dict[str, Any]
) -> Config:
    """The configuration that the command line describes.

    Raises:
        SystemExit: after ``--help`` (0), or for flags that cannot be used (2), with a message.
    """
    groups = _groups(config_type)
    if len(groups) == 1:
        return tyro.cli(config_type, description=description, args=arguments)
    made: list[tuple[str, Any]] = [
        (title, Annotated[_group(title, members, defaults), tyro.conf.OmitArgPrefixes, tyro.conf.arg(help=about)])
        for (title, about), members in groups.items()
    ]
    flags: Any = tyro.cli(make_dataclass("Flags", made), description=description, args=arguments)
    values = {each.name: getattr(group, each.name) for group in vars(flags).values() for each in fields(group)}
    try:
        return config_type(**values)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from error


@dataclass
class _Flag:
    """A field on its way to a flag."""

    field: Field[Any]
    hint: Any
    doc: str


def _groups(config_type: type[Any]) -> dict[tuple[str, str], list[_Flag]]:
    """Flags by their group's title and subject, in the order of the base classes; an overridden field stays in the
    group of the class that declared it first."""
    hints = get_type_hints(config_type, include_extras=True)
    docs: dict[str, str] = {}
    home: dict[str, str] = {}
    abouts: dict[str, list[str]] = {}
    for kind in config_type.__mro__:
        if not is_dataclass(kind) or not inspect.get_annotations(kind):
            continue
        title, _, about = (kind.__doc__ or "").partition("\n")[0].partition(":")
        title, about = (title, about) if title.isidentifier() else ("Run", title)
        abouts.setdefault(title, []).append(about.strip(" ."))
        for name, doc in _docs(kind).items():
            docs.setdefault(name, doc)
            home[name] = title
    groups: dict[str, list[_Flag]] = {title: [] for title in abouts}
    for each in fields(config_type):
        groups[home[each.name]].append(_Flag(each, hints[each.name], docs[each.name]))
    return {(title, "; ".join(abouts[title])): members for title, members in groups.items() if members}


def _docs(kind: type[Any]) -> dict[str, str]:
    """The docstring below each field that ``kind`` itself declares; empty where there is none."""
    body = _classes(kind.__module__)[kind.__name__].body
    found: dict[str, str] = {}
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            found[node.target.id] = " ".join(str(text).split())
    return found


@lru_cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module's source, read once for all that are asked for."""
    source = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}


def _group(title: str, members: list[_Flag], defaults: dict[str, Any]) -> type[Any]:
    made = []
    for flag in members:
        annotated: Any = Annotated[flag.hint, tyro.conf.arg(help=flag.doc)]
        if flag.hint in (Schedule, Schedule | None):
            annotated = Annotated[annotated, _SCHEDULE]
        name, own = flag.field.name, flag.field
        given = {"default": own.default, "default_factory": own.default_factory}
        made.append((name, annotated, field(**({"default": defaults[name]} if name in defaults else given))))
    return make_dataclass(title, made, kw_only=True)


def _schedule(words: list[str]) -> Schedule | None:
    if words == ["None"]:
        return None
    start, colon, end = words[0].partition(":")
    return Linear(float(start), float(end)) if colon else float(start)


_SCHEDULE = PrimitiveConstructorSpec(
    nargs=1,
    metavar="VALUE|START:END",
    instance_from_str=_schedule,
    is_instance=lambda value: value is None or isinstance(value, float | Linear),
    str_from_instance=lambda value: [f"{value.start:g}:{value.end:g}" if isinstance(value, Linear) else f"{value}"],
)
"""A constant, or a straight line over the training."""
