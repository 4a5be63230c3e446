"""Compiling with Numba: when it happens, and what is kept on disk.

A kernel compiles at its first call. It has one signature and is cached on disk. That is also what
makes several processes safe that compile at one time: Numba replaces its files atomically, but
numbers them per function, so two signatures of one function, compiled in two processes, could swap
their code. Numba's cache looks at the age of one file only: a kernel and the helpers that it calls
stay in one file.

A division by zero follows IEEE and raises nothing: to look for it would keep a loop of divisions
from being vectorised.
"""

from collections.abc import Callable
from threading import Lock
from typing import Any, Final, ParamSpec, TypeVar, cast

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")

_ERRORS: Final = "numpy"


class Kernel:
    """A function compiled for one signature when it is first called, from the disk cache if it can.

    Compiling all of them takes seconds, and a node that has just started needs two or three.
    """

    def __init__(self, signature: str, function: Callable[..., Any]) -> None:
        self.signature = signature
        self.function = function
        self._compiled: Callable[..., Any] | None = None
        self._lock = Lock()

    def __call__(self, *arguments: object) -> Any:  # noqa: ANN401
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compile()
        return self._compiled(*arguments)

    def _compile(self) -> Callable[..., Any]:
        compiled: Callable[..., Any]
        options: dict[str, Any] = {"nogil": True, "error_model": _ERRORS}
        try:
            compiled = njit(self.signature, cache=True, **options)(self.function)
        except Exception:
            # No writable folder, a full disk, or a cache file that a crash cut short: none of them
            # may keep a node from working. A real error shows again here.
            compiled = njit(self.signature, **options)(self.function)
        return compiled


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    return lambda function: Kernel(signature, function)


def helper(function: Callable[P, R]) -> Callable[P, R]:
    """A function that kernels call; compiled into each of them."""
    return cast(Callable[P, R], njit(function, error_model=_ERRORS))
