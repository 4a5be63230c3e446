"""Who is at fault.

`LocalError` means our own bug, and we stop. `RemoteError` means somebody else's bytes, and we drop
them, count them against their sender and go on. Nothing else leaves this package for what arrives
from a network.
"""


class LocalError(Exception):
    """This program broke its own rules."""


class RemoteError(Exception):
    """Somebody else's bytes broke the rules of the protocol."""
