"""What all backends have: they run a task on many items, and are sent a large task once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from compressor.errors import BocompressError, InputError
from compressor.text import first_line

Task = Any  # a function, or what `share` made of one
Prepare = Callable[[], object]


class Backend(AbstractContextManager["Backend"], ABC):
    """Runs tasks in workers, which live as long as the `with` block."""

    def share(self, task: Task) -> Task:
        """What to run in place of a task that is large, or used many times: workers are sent it once, not every time.

        Raises:
            InputError: it cannot be sent to other processes.
        """
        return task

    @abstractmethod
    def run(self, task: Task, items: Sequence[tuple[Any, ...]], in_order: bool = True) -> Iterator[Any]:
        """Results of `task(*item)`, as they come.

        Args:
            task: a function that can be pickled, or what `share` made of one.
            items: its arguments.
            in_order: results come in the order of the items; else whichever is ready.

        Raises:
            BocompressError: a worker died. What a task raises is raised as it is.
        """

    def __exit__(self, *_: object) -> None:
        """Free what the block held."""


class ClusterBackend(Backend):
    """A backend of a cluster, which runs as many tasks at once as it was asked for, and no more.

    Attributes:
        size: how many.
    """

    size: int

    @abstractmethod
    def submit(self, task: Task, item: tuple[Any, ...]) -> Any:
        """Begin a task; gives a handle that can be a key."""

    @abstractmethod
    def wait(self, handles: Sequence[Any]) -> Any:
        """One of the handles, whose task is over."""

    @abstractmethod
    def result(self, handle: Any) -> Any:
        """What its task returned; raises what it raised, or BocompressError where its worker died."""

    @abstractmethod
    def cancel(self, handles: Sequence[Any]) -> None:
        """Drop tasks, begun or not."""

    def run(self, task: Task, items: Sequence[tuple[Any, ...]], in_order: bool = True) -> Iterator[Any]:
        """See `Backend.run`."""
        found = self._run(task, items)
        return sort_by_place(found) if in_order else (result for _, result in found)

    def _run(self, task: Task, items: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        to_come = enumerate(items)
        running = {self.submit(task, item): place for place, item in islice(to_come, self.size)}
        try:
            while running:
                done = self.wait([*running])
                place = running.pop(done)
                running |= {self.submit(task, item): number for number, item in islice(to_come, 1)}
                yield place, self.result(done)
        finally:
            self.cancel([*running])


def call(task: Task, *arguments: Any) -> Any:
    """What workers of a cluster are given to run: a task may be something that stands for one."""
    return task(*arguments)


def sort_by_place(found: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    """Results by their places 0, 1, ..., each as soon as those before it are there."""
    early: dict[int, Any] = {}
    following = 0
    for place, result in found:
        early[place] = result
        while following in early:
            yield early.pop(following)
            following += 1


def worker_died(error: BaseException) -> BocompressError:
    """The sentence for a worker that is gone."""
    return BocompressError(
        f"a worker ended unexpectedly ({first_line(error)}), for want of memory perhaps: --resume with fewer --workers "
        "goes on"
    )


def not_sendable(error: BaseException) -> InputError:
    """The sentence for a task that other processes cannot be sent."""
    return InputError(
        f"the network cannot be sent to other processes ({first_line(error)}): use --backend threading or --workers 1"
    )


def cannot_use(backend: str, reason: str) -> InputError:
    """The sentence for a backend that is not there."""
    return InputError(
        f"--backend {backend} cannot be used ({reason}): loky and threading come with joblib, ray and dask "
        "with pip install 'ray[default]' and 'dask[distributed]', others must be installed and registered with joblib"
    )
