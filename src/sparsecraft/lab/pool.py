"""Runs one function on many arguments, in this process, on the machine's cores or on a cluster.

An error of one call is an answer like any other, so that it never takes the other calls down.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Literal, TypeVar, get_args

from sparsecraft.core.errors import InvalidValue, MissingDependency, SparsityError, UnknownName

Backend = Literal["loky", "ray"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
Argument = TypeVar("Argument")
# Seconds for which idle processes stay, also those whose parent was killed.
IDLE = 10
# Ray gives its answers back in groups of so many calls for each that runs at once.
GROUP = 2


@dataclass(frozen=True)
class Answer(Generic[Argument]):
    """What became of one call.

    Args:
        argument: What the function was called with.
        value: What it returned; None if it raised.
        error: What it raised, or None.
    """

    argument: Argument
    value: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        """Returns the value, or raises the error."""
        if self.error is not None:
            raise self.error
        return self.value


def answers(
    function: Callable[[Any], Any],
    arguments: Iterable[Argument],
    *,
    jobs: int = 1,
    backend: str = "loky",
) -> Iterator[Answer[Argument]]:
    """Yields one answer for each argument, as the calls end; later arguments are taken up late.

    Args:
        function: A function of a module, so that other processes can import it.
        arguments: Read as there is room, so that a generator may still decide what comes.
        jobs: How many calls run at once; 1 with "loky" runs them here, in order.
        backend: "loky" for processes on this machine, "ray" for the Ray cluster that `RAY_ADDRESS`
            names, or a local one where it names none.

    Raises:
        InvalidValue: If `jobs` is below 1.
        UnknownName: If there is no such back end.
        MissingDependency: If joblib or Ray is not installed.
    """
    check_pool(jobs, backend)
    if jobs == 1 and backend == "loky":
        yield from (_answer(function, argument) for argument in arguments)
        return
    joblib = _joblib(jobs, backend)
    given: list[Argument] = []

    def calls() -> Iterator[Any]:
        for argument in arguments:
            given.append(argument)
            yield joblib.delayed(_call)(function, len(given) - 1, argument)

    for index, value, error in _run(joblib, calls(), jobs, backend):
        yield Answer(given[index], value, error)


def check_pool(jobs: int, backend: str) -> None:
    """Raises unless so many calls can run at once on this back end."""
    if jobs < 1:
        raise InvalidValue(f"jobs={jobs} is not allowed: give at least 1")
    if backend not in BACKENDS:
        raise UnknownName("back end", backend, BACKENDS)


def reason(error: Exception) -> str:
    """Returns an error in one line, with its type where it is not one of the library's own."""
    words = " ".join(str(error).split())
    if isinstance(error, SparsityError):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _run(joblib: Any, calls: Iterator[Any], jobs: int, backend: str) -> Iterator[Any]:
    if backend == "loky":
        with joblib.parallel_config(backend="loky", idle_worker_timeout=IDLE):
            parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        yield from parallel(calls)
        return
    with joblib.parallel_config(backend=backend), joblib.Parallel(n_jobs=jobs) as parallel:
        while group := list(islice(calls, GROUP * jobs)):
            yield from parallel(group)


def _joblib(jobs: int, backend: str) -> Any:
    try:
        import joblib
    except ImportError as error:
        raise MissingDependency("joblib", "lab", f"Running {jobs} cells at once") from error
    if backend == "ray":
        try:
            from ray.util.joblib import register_ray
        except ImportError as error:
            raise MissingDependency("ray", "cluster", "Running cells on a Ray cluster") from error
        register_ray()
    return joblib


def _answer(function: Callable[[Any], Any], argument: Argument) -> Answer[Argument]:
    try:
        return Answer(argument, function(argument))
    except Exception as error:
        return Answer(argument, error=error)


def _call(
    function: Callable[[Any], Any], index: int, argument: Any
) -> tuple[int, Any, Exception | None]:
    """Runs in the other process; returns what can travel back."""
    found = _answer(function, argument)
    return index, found.value, None if found.error is None else _portable(found.error)


def _portable(error: Exception) -> Exception:
    """Returns the error, or one with the same words where it cannot be sent between processes."""
    try:
        travels = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        travels = False
    if travels:
        return error
    kind = SparsityError if isinstance(error, SparsityError) else RuntimeError
    return kind(reason(error))
