"""When one of a peer's processes is gone, the peer ends: what it shared out is gone with it."""

import signal

from node.errors import UserError

_HINT = "what it said stands above, if anything; started again, the peer goes on from its disk"


class BoxError(UserError):
    """Another process of this peer ended."""

    @classmethod
    def ended(cls, rank: int, pid: int, code: int) -> "BoxError":
        """`code`: as `Popen.wait` returns it, negative for a signal."""
        how = f"ended with exit code {code}" if code >= 0 else f"was killed by {_signal(-code)}"
        return cls(f"process {rank} of this peer (pid {pid}) {how}", _HINT)

    @classmethod
    def unreachable(cls, error: Exception) -> "BoxError":
        """Started by torchrun, which knows more."""
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        hint = "torchrun says which one; started again, the peer goes on from its disk"
        return cls(f"another process of this peer does not answer: {first}", hint)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
