"""What a run would take on this machine: sizes counted, times measured, in one round of work."""

import os
import resource
import time
from pathlib import Path
from typing import Any

from node.build import Workshop
from node.config import NodeConfig, RunFile
from node.methods.base import RoundContext
from node.replica import Replica
from node.snapshots import KEPT, ON_DISK_MAX
from protocol.ids import PeerId, RunId


def survey(run_file: RunFile, node: NodeConfig, root: Path) -> dict[str, Any]:
    """Loads, evaluates and works for one window. Raises UserError for what is missing."""
    workshop = Workshop.open(run_file.model, run_file.data, node, root)
    parameters = list(workshop.model.module.parameters())
    run, me = RunId(bytes(32)), PeerId(os.urandom(32))
    trainer = workshop.trainer(run, run_file.method)
    end_s = time.monotonic() + run_file.rules.window_s
    context = RoundContext(run, 0, me, (me,), lambda: time.monotonic() >= end_s)
    started = time.monotonic()
    result = trainer.method.work(context)
    seconds = time.monotonic() - started
    work = trainer.method.weigh(result.payload)
    data_digest = workshop.data_digest()
    snapshot_bytes = Replica(trainer.method, trainer.initial_state, run, me, (me,)).stream().size
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "weights_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "state_bytes": sum(
            tensor.numel() * tensor.element_size()
            for tensor in trainer.method.replicated_state().values()
        ),
        "snapshot_bytes": snapshot_bytes,
        "snapshot_every": run_file.rules.snapshot_every,
        "snapshots_kept": KEPT,
        "snapshots_bytes_max": ON_DISK_MAX * snapshot_bytes,
        "samples": workshop.data.samples,
        "heldout_batches": len(workshop.data.held_out()),
        "heldout_loss": trainer.heldout(),
        "work_per_round": work,
        "unit_of_work": run_file.method.unit_of_work,
        "seconds_per_unit": seconds / work,
        "payload_bytes": len(result.payload),
        "attachment_bytes": len(result.attachment),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "model_digest": workshop.model_digest().hex(),
        "data_digest": None if data_digest is None else data_digest.hex(),
        "device": str(workshop.device),
    }
