"""Threads for kernels, which let go of the interpreter's lock while they run."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Lock
from typing import Final, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


_JOBS: Final = 8  # for each thread: enough that all end at nearly the same time


class Threads:
    """As many threads as asked for, started when they are first needed."""

    def __init__(self, count: int | None = None) -> None:
        """`count`: how many to use; None follows `torch.get_num_threads()` at each call."""
        self._count = count
        self._pool: ThreadPoolExecutor | None = None
        self._pool_of = (0, 0)  # its process and size: threads do not survive a fork
        self._lock = Lock()

    @property
    def count(self) -> int:
        return self._count or torch.get_num_threads()

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The result for each item, in their order; the first error in that order is raised.

        Returns or raises only when no item is being worked on any more.
        """
        everything, count = list(items), self.count
        if count == 1:
            return [work(item) for item in everything]
        # Several items a job, since handing one over costs as much as a small item.
        each = -(-len(everything) // (_JOBS * count)) or 1
        groups = [everything[at : at + each] for at in range(0, len(everything), each)]
        pool = self._threads(count)
        jobs = [pool.submit(_all_of, work, group) for group in groups]
        wait(jobs)
        return [result for job in jobs for result in job.result()]

    def _threads(self, count: int) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pool_of != (os.getpid(), count):
                self._pool = ThreadPoolExecutor(count, thread_name_prefix="kernels")
                self._pool_of = (os.getpid(), count)
            return self._pool


def _all_of(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    return [work(item) for item in items]
