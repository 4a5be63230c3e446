"""Errors that a person can act on. Each says what is wrong and what to do next.

The command line prints `message`, then `hint`, and leaves with `exit_code`. Bugs of ours are not
among these: they stay ordinary exceptions with a traceback.
"""

from importlib import import_module
from types import ModuleType


class UserError(Exception):
    """Something outside this program must change before it can go on."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(UserError):
    """The configuration names something that is not there, or contradicts itself."""

    exit_code = 2


class MissingExtra(ConfigError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"the package {package!r} is needed here and is not installed",
            f"pip install 'peertrain[{extra}]'",
        )


class IdentityError(UserError):
    """This machine's model or data is not the one that the run was founded with."""

    exit_code = 3


class DivergedError(UserError):
    """Training made numbers that are not finite."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} holds values that are not finite: training has diverged",
            "lower the learning rate in [method], or set clip_norm, and found the run anew",
        )


def optional(package: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise MissingExtra(package, extra) from error
