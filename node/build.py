"""A model, its data and a method, put together the way a manifest says and this machine's settings
allow.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from node.box.place import place_of
from node.config import Manifest, NodeConfig
from node.errors import ConfigError, IdentityError
from node.kernels import kernels_for
from node.methods.base import Attaches
from node.methods.parts.setup import Setup
from node.methods.registry import MethodConfig, build_method
from node.training.data import Data, open_data
from node.training.data_config import DataConfig
from node.training.evaluate import held_out_loss
from node.training.losses import batch_loss
from node.training.model_config import AnyModel, GptConfig, HfConfig
from node.training.models import Model, build_model, model_digest
from node.training.own_optimizer import check_own_optimizer
from node.worker import Trainer
from protocol.ids import RunId

if TYPE_CHECKING:
    from node.box.leader import Box


def choose_device(name: str) -> torch.device:
    """Raises ConfigError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name!r} cannot be used: {reason}", "try --device cpu"
        ) from error
    return device


def open_box(node: NodeConfig, lost: Callable[[BaseException], None]) -> "Box | None":
    """A peer's other processes, started; None for a peer of one. `lost` is called on a thread when
    one of them ends before its time. Raises UserError.
    """
    place = place_of(node)
    if place.processes == 1:
        return None
    from node.box.leader import Box  # FSDP2 takes a second to import, which others need not wait

    return Box(place, choose_device(node.device).type, lost)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Model and data, loaded, before it is known that they are the right ones."""

    model: Model
    data: Data
    node: NodeConfig
    root: Path
    device: torch.device
    box: "Box | None" = None  # this peer's processes, if there are several

    @classmethod
    def open(
        cls,
        model: AnyModel,
        data: DataConfig,
        node: NodeConfig,
        root: Path,
        box: "Box | None" = None,
    ) -> "Workshop":
        """Raises ConfigError for what is missing on this machine."""
        if node.threads:
            torch.set_num_threads(node.threads)
        if box is not None:
            box.open(model, data, node, root)  # they load while we do
        device = choose_device(node.device) if box is None else box.device
        built = _build(model, node, root, device)
        if node.optimizer is not None:
            check_own_optimizer(node.optimizer, built.module)
        return cls(
            built,
            open_data(_local_data(data, node), built.tokenizer, root),
            node,
            root,
            device,
            box,
        )

    def model_digest(self) -> bytes:
        return model_digest(self.model.module)

    def data_digest(self) -> bytes | None:
        return None if self.data.private else self.data.digest

    def attaches(self, method: MethodConfig) -> Attaches:
        """What one contribution brings beside its payload, at most."""
        shapes = [p.shape for p in self.model.module.parameters() if p.requires_grad]
        return Attaches(method.attachment_bytes_max(shapes), method.parts_max(shapes))

    def check(self, manifest: Manifest) -> None:
        """Are this machine's model and data those of the run? Raises IdentityError."""
        self.check_model(manifest)
        ours = self.data_digest()
        if manifest.data_digest is not None and (
            ours is None or ours.hex() != manifest.data_digest
        ):
            raise IdentityError(
                "the data on this machine are not those that the run was founded with",
                "fetch the same files as the founder, or pass their place with --data"
                " (the Python library's sources differ between Python versions)",
            )

    def check_model(self, manifest: Manifest) -> None:
        if self.model_digest().hex() != manifest.model_digest:
            raise IdentityError(
                "the model on this machine is not the one that the run was founded with",
                "fetch the same files as the founder, or pass their place with --model",
            )

    def another_model(self, seed: int = 0) -> Model:
        """The starting model made anew; one that starts at random starts elsewhere with each
        `seed`, and as the run says with 0.
        """
        config = self.model.config
        if isinstance(config, GptConfig):
            config = config.model_copy(update={"seed": (config.seed + seed) % (1 << 63)})
        return _build(config, self.node, self.root, self.device)

    def trainer(self, run: RunId, method: object) -> Trainer:
        """Ready to work. Loading the initial state again later makes the model anew."""
        kernels = kernels_for(self.device, self.node.kernels)
        batches = self.data.held_out()

        def setup(model: Model, box: "Box | None" = None) -> Setup:
            own = self.node.optimizer
            return Setup(model.module, self.data, batch_loss, kernels, run, own, box)

        built = build_method(method, setup(self.model, self.box))  # type: ignore[arg-type]

        def initial_state() -> Mapping[str, Tensor]:
            fresh = self.another_model()
            return build_method(method, setup(fresh)).replicated_state()  # type: ignore[arg-type]

        return Trainer(built, lambda: held_out_loss(self.model.module, batches), initial_state)


def _build(model: AnyModel, node: NodeConfig, root: Path, device: torch.device) -> Model:
    if node.model is not None and isinstance(model, HfConfig):
        model = model.model_copy(update={"path": node.model})
    return build_model(model, root=root, factories=node.factories, device=device)


def _local_data(data: DataConfig, node: NodeConfig) -> DataConfig:
    return data.model_copy(update={"path": node.data}) if node.data else data
