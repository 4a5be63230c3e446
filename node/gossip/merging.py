"""The end of a gossip run, or a look at where it stands: the mean of the models that were fetched
onto a peer's disk, beside each of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from node.attachments import AttachmentReader
from node.build import Workshop
from node.errors import UserError
from node.gossip.merge import merged, work_weights
from node.gossip.models import read_model
from node.gossip.party import flatten
from node.offline import ReadOnlyStore, recall_membership
from node.training import weights
from node.training.evaluate import held_out_loss
from node.training.models import Model
from protocol.entries import Attachment
from protocol.ids import Hash


@dataclass(frozen=True, slots=True)
class Merged:
    model: Model
    facts: dict[str, Any]  # who is in it, and what all are worth, for people


def merge_models(
    home: Path,
    found: Sequence[Mapping[str, Any]],  # what `gather` answered
    target: Path,
    changes: Mapping[str, Any],
    merge_adapter: bool,
    tell: Callable[[str], None],
) -> Merged:
    """Write the merged model to `target`. Raises UserError."""
    here = [one for one in found if "root" in one]
    missing = [dict(one) for one in found if "root" not in one]
    if not here:
        raise UserError("no member's model could be had", "see `peer status` for who is up")
    tell("loading model and data")
    disk = ReadOnlyStore(home)
    try:
        membership, node, root = recall_membership(home, disk, changes)
        manifest = membership.manifest
        workshop = Workshop.open(manifest.model, manifest.data, node, root)
        reader = AttachmentReader(home, disk)
        return _merge(workshop, reader, here, missing, target, merge_adapter, tell)
    finally:
        disk.close()


def _merge(
    workshop: Workshop,
    reader: AttachmentReader,
    here: Sequence[Mapping[str, Any]],
    missing: list[dict[str, Any]],
    target: Path,
    merge_adapter: bool,
    tell: Callable[[str], None],
) -> Merged:
    flat, module = flatten(workshop.model.module), workshop.model.module
    batches = workshop.data.held_out()
    tokens = [int(one["tokens"]) for one in here]
    shares = work_weights(tokens)
    losses: list[float] = []

    def models() -> Iterator[Tensor]:
        """One after the other: only one is in memory."""
        for one in here:
            tell(f"measuring the model of member {one['peer'][:8]}")
            vector = _read(reader, one, flat.numel()).to(flat.device)
            flat.copy_(vector)
            losses.append(held_out_loss(module, batches))
            yield vector

    flat.copy_(merged(models(), shares))
    whole = sum(shares)
    members = [
        {
            "peer": one["peer"],
            "tokens": count,
            "exchange": one["exchange"],
            "share": share / whole,
            "heldout_loss": loss,
        }
        for one, count, share, loss in zip(here, tokens, shares, losses, strict=True)
    ]
    loss = held_out_loss(module, batches)
    weights.export(workshop.model, target, merge_adapter=merge_adapter)
    facts = {
        "path": str(target),
        "bytes": sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
        "members": members,
        "missing": missing,
        "heldout_loss": loss,
        "mean_heldout_loss": sum(losses) / len(losses),
        "best_heldout_loss": min(losses),
    }
    return Merged(workshop.model, facts)


def _read(reader: AttachmentReader, one: Mapping[str, Any], size: int) -> Tensor:
    data = reader.read(Attachment(Hash(bytes.fromhex(one["root"])), int(one["size"])))
    vector = None if data is None else read_model(data, size)
    if vector is None:
        raise UserError(
            f"what member {one['peer'][:8]} sent is no model of this run",
            "run the command again; if it happens again, that member is not to be trusted",
        )
    return vector
