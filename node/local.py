"""What a method keeps on this machine alone: error feedback, an optimizer's state, late work.

One file beside the snapshots, written when they are taken and when the process ends. Who is killed
goes on with the one before; what it had computed since is lost with it, as with any machine that
dies.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError

from node.chunks import explained
from node.durable import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

FILE: Final = "local.safetensors"


class LocalState:
    def __init__(self, home: Path) -> None:
        self._path = home / FILE

    def save(self, state: "Mapping[str, Tensor]") -> None:
        """Of tensors that share no memory. Raises StoreError."""
        from safetensors.torch import save_file  # torch: for who trains

        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        try:
            write_atomically(self._path, lambda path: save_file(tensors, path))
        except OSError as error:
            raise explained(error, self._path) from error

    def load(self) -> "dict[str, Tensor] | None":
        """None if there is none. Raises StoreError, and ValueError for a damaged one."""
        from safetensors.torch import load_file

        try:
            return load_file(self._path)
        except FileNotFoundError:
            return None
        except SafetensorError as error:
            raise ValueError(f"{self._path} is damaged: {error}") from error
        except OSError as error:
            raise explained(error, self._path) from error
