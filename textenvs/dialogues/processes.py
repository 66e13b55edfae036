"""Sub-environments in processes of their own, for those that compute: threads of one process share its interpreter."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import Any, TypeAlias

from gymnasium.vector.utils import CloudpickleWrapper

from textenvs.dialogues.bridge import Observation
from textenvs.dialogues.sub_environments import DialogueError, EnvSource, Reply, SubEnvironments, placed

Worker: TypeAlias = tuple[Any, Connection]
"""A process, and the line to it."""
Outcome: TypeAlias = tuple[str, Any]
"""Of a process: "done" with what it found, "invalid" with a `ValueError`'s text, "failed" with a `DialogueError`'s."""


class ProcessEnvironments:
    """As `SubEnvironments`, but environment i lives in process i modulo ``processes``, and those work side by side.

    They start with the first `reset`, import what makes the environments, and end with this process. What goes to
    them and back is pickled: turns, observations and infos; of the source functions and classes without a module, too.
    """

    def __init__(self, source: EnvSource, number: int, *, processes: int) -> None:
        self._source: Any = CloudpickleWrapper(source)  # type: ignore[arg-type] # which may be an id
        self._shares = [range(start, number, processes) for start in range(min(processes, number))]
        self._turns, self._names = [0] * number, ["environment"] * number
        self._workers: list[Worker] = []
        # At exit before multiprocessing's own end of daemons, which a process that ignores SIGTERM would hold up.
        Finalize(self, _end, (self._workers,), exitpriority=1)

    def reset(self, indices: Sequence[int], seeds: Sequence[int | None]) -> list[tuple[Observation, dict[str, Any]]]:
        """See `SubEnvironments.reset`; ValueError, at first, as `SubEnvironments` raises it.

        Raises:
            DialogueError: also if a process ended.
        """
        if not self._workers:
            self._start()
        for index in indices:
            self._turns[index] = 0
        return self._ask("reset", indices, seeds)

    def step(self, indices: Sequence[int], actions: Sequence[Any]) -> list[Reply]:
        """See `SubEnvironments.step`; DialogueError also if a process ended."""
        for index in indices:
            self._turns[index] += 1
        return self._ask("step", indices, actions)

    def place(self, index: int) -> str:
        """See `SubEnvironments.place`."""
        return placed(index, self._names[index], self._turns[index])

    def close(self) -> None:
        """End the processes, which close their environments."""
        _end(self._workers)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in the middle of their work
        for share in self._shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._source, share), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))
        try:
            for worker, share in enumerate(self._shares):
                for index, name in zip(share, self._answer(worker), strict=True):
                    self._names[index] = name
        except BaseException:
            self.close()
            raise

    def _ask(self, call: str, indices: Sequence[int], values: Sequence[Any]) -> list[Any]:
        """A message to each process that has some of ``indices``, and all answers; then the first fault."""
        if not self._workers:
            raise DialogueError("expected a reset before the first step, and after a process has ended")
        try:
            return self._answers(call, indices, values)
        except KeyboardInterrupt:  # answers that are on their way would be taken for later ones
            self.close()
            raise

    def _answers(self, call: str, indices: Sequence[int], values: Sequence[Any]) -> list[Any]:
        positions = [[at for at, index in enumerate(indices) if index in share] for share in self._shares]
        asked = [(worker, own) for worker, own in enumerate(positions) if own]
        for worker, own in asked:
            numbers = [indices[at] // self._shares[worker].step for at in own]
            self._send(worker, (call, numbers, [values[at] for at in own]))
        found: list[Any] = [None] * len(indices)
        faults: list[Exception] = []
        for worker, own in asked:
            try:
                for at, result in zip(own, self._answer(worker), strict=True):
                    found[at] = result
            except DialogueError as fault:
                faults.append(fault)
                if not self._workers:
                    break
        if faults:
            raise faults[0]
        return found

    def _send(self, worker: int, message: object) -> None:
        try:
            self._workers[worker][1].send(message)
        except OSError:
            raise self._ended(worker) from None

    def _answer(self, worker: int) -> Any:
        try:
            kind, result = self._workers[worker][1].recv()
        except (EOFError, OSError):
            raise self._ended(worker) from None
        if kind != "done":
            raise {"invalid": ValueError, "failed": DialogueError}[kind](result)
        return result

    def _ended(self, worker: int) -> DialogueError:
        process, share = self._workers[worker][0], self._shares[worker]
        process.join(timeout=10)
        code = process.exitcode
        self.close()
        return DialogueError(
            f"sub-environments {', '.join(map(str, share))}: their process ended with exit code {code}"
        )


def _end(workers: list[Worker]) -> None:
    for _, connection in workers:
        try:
            connection.send(None)
        except OSError:  # it has ended
            continue
    for process, connection in workers:
        process.join(timeout=10)
        process.kill()
        connection.close()
    workers.clear()


Environments: TypeAlias = SubEnvironments | ProcessEnvironments


def _serve(connection: Connection, source: CloudpickleWrapper, share: range) -> None:
    """A process: make the environments of ``share``, say what they are, and answer until None is sent."""
    for each in (signal.SIGINT, signal.SIGTERM):  # they end training after its update, which needs the answers
        signal.signal(each, lambda *_: None)  # which what an environment starts does not inherit
    try:
        envs = SubEnvironments(source.fn, len(share), numbers=share)
    except ValueError as fault:
        return connection.send(("invalid", str(fault)))
    except Exception as fault:  # of whatever kind
        return connection.send(("failed", f"sub-environment {share[0]}, made: {type(fault).__name__}: {fault}"))
    connection.send(("done", envs.names))
    try:
        while (message := connection.recv()) is not None:
            outcome = _outcome(envs, *message)
            try:
                connection.send(outcome)
            except BrokenPipeError:  # the other side has ended
                break
            except Exception:  # pickle raises what the objects do
                connection.send(("failed", _unpicklable(envs, message[1], outcome[1])))
    except EOFError:
        pass
    envs.close()


def _outcome(envs: SubEnvironments, call: str, numbers: list[int], values: list[Any]) -> Outcome:
    try:
        return "done", envs.reset(numbers, values) if call == "reset" else envs.step(numbers, values)
    except DialogueError as fault:
        return "failed", str(fault)


def _unpicklable(envs: SubEnvironments, numbers: list[int], found: list[Any]) -> str:
    """Which of the environments ``numbers`` wrote what cannot be sent, and why."""
    for number, each in zip(numbers, found, strict=True):
        try:
            ForkingPickler.dumps(each)
        except Exception as fault:
            why = f"expected an observation and an info that can be pickled: {type(fault).__name__}: {fault}"
            return f"{envs.place(number)}: {why}"
    return "expected observations and infos that can be pickled together"
