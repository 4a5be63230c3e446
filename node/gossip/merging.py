"""The end of a gossip run, or a look at where it stands: the mean of the models that were fetched
onto a peer's disk, beside each of them.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from node.attachments import AttachmentReader, read_held
from node.build import Workshop
from node.chunks import explained
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

_FRESH_S: Final = 60.0  # it may have been made, and not locked yet


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
    disk = ReadOnlyStore(home)
    # The peer removes them after a while, and loading and judging may take longer.
    with _folder(home) as folder:
        try:
            reader = AttachmentReader(home, disk)
            files = [reader.hold(_blob(one), folder) for one in here]
            tell("loading model and data")
            membership, node, root = recall_membership(home, disk, changes)
            manifest = membership.manifest
            workshop = Workshop.open(manifest.model, manifest.data, node, root)
            return _merge(workshop, files, here, missing, target, merge_adapter, tell)
        finally:
            disk.close()


@contextmanager
def _folder(home: Path) -> Iterator[Path]:
    """An empty one, gone at the end. Those of processes that were killed go, too. Raises
    StoreError.
    """
    for left in home.glob("merging-*"):
        with suppress(OSError), _locked(left):
            if time.time() - left.stat().st_mtime > _FRESH_S:
                shutil.rmtree(left)
    try:
        made = tempfile.TemporaryDirectory(prefix="merging-", dir=home)
    except OSError as error:
        raise explained(error, home) from error
    with made as name, _locked(Path(name)):
        yield Path(name)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _merge(
    workshop: Workshop,
    files: Sequence[Path | None],
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
        for file, one in zip(files, here, strict=True):
            tell(f"measuring the model of member {one['peer'][:8]}")
            vector = _read(file, one, flat.numel()).to(flat.device)
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


def _blob(one: Mapping[str, Any]) -> Attachment:
    return Attachment(Hash(bytes.fromhex(one["root"])), int(one["size"]))


def _read(file: Path | None, one: Mapping[str, Any], size: int) -> Tensor:
    if file is None:
        raise UserError(
            f"the model of member {one['peer'][:8]} is gone from this disk before it could be read",
            "run the command again",
        )
    data = read_held(file, _blob(one))
    vector = None if data is None else read_model(data, size)
    if vector is None:
        raise UserError(
            f"what member {one['peer'][:8]} sent is no model of this run",
            "run the command again; if it happens again, that member is not to be trusted",
        )
    return vector
