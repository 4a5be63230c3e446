"""What a run would take on this machine: sizes counted, times measured, in one round of work; and
what follows from those for a swarm of machines like it on lines of so many Mbit/s.
"""

import os
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from node.build import Workshop, open_box
from node.config import NodeConfig, RunFile
from node.gossip import survey as gossip
from node.gossip.checkpoints import Checkpoints
from node.methods.base import RoundContext
from node.methods.parts.gossip_config import GossipConfig
from node.replica import Replica
from node.snapshots import KEPT, bytes_max
from protocol.ids import PeerId, RunId

UPLINKS: Final = (10.0, 100.0, 1000.0)


@dataclass(frozen=True, slots=True)
class Swarm:
    """What an outlook is for."""

    peers: int = 4
    uplinks_mbit: Sequence[float] = UPLINKS  # of each peer, one outlook for each


def survey(run_file: RunFile, node: NodeConfig, root: Path, swarm: Swarm) -> dict[str, Any]:
    """Loads, evaluates and works for one window. Raises UserError for what is missing."""
    box = open_box(node, lambda error: None)  # what all do together raises it
    try:
        workshop = Workshop.open(run_file.model, run_file.data, node, root, box)
        return _measure(run_file, workshop, swarm)
    finally:
        if box is not None:
            box.close()


def _measure(run_file: RunFile, workshop: Workshop, swarm: Swarm) -> dict[str, Any]:
    if isinstance(run_file.method, GossipConfig):
        found = _measure_gossip(run_file, workshop, swarm)
    else:
        found = _measure_rounds(run_file, workshop, swarm)
    parameters = list(workshop.model.module.parameters())
    data_digest = workshop.data_digest()
    return {
        "gossips": run_file.method.gossips,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "weights_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "samples": workshop.data.samples,
        "heldout_batches": len(workshop.data.held_out()),
        "unit_of_work": run_file.method.unit_of_work,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "model_digest": workshop.model_digest().hex(),
        "data_digest": None if data_digest is None else data_digest.hex(),
        "device": str(workshop.device),
        "processes": 1 if workshop.box is None else workshop.box.processes,
        "peers": swarm.peers,
        **found,
    }


def _measure_gossip(run_file: RunFile, workshop: Workshop, swarm: Swarm) -> dict[str, Any]:
    method = run_file.method
    trainer = workshop.trainer(RunId(bytes(32)), method)
    assert isinstance(method, GossipConfig)
    assert isinstance(trainer.method, Checkpoints)
    party = trainer.method.party
    heldout = trainer.heldout()
    work = gossip.time_work(party, run_file.rules.window_s)
    trade = gossip.time_exchange(party)
    facts = gossip.facts_of(party, work, trade, swarm.peers)
    parameters = list(workshop.model.module.parameters())
    memory = _memory(parameters, run_file, party.local_state(), 1)
    private = run_file.data.private
    return {
        **facts,
        "heldout_loss": heldout,
        "memory": {**memory, "exchange": trade.open_bytes},
        "cautions": [
            *method.cautions(),
            *gossip.cautions(party.config, swarm.peers, is_private=private),
        ],
        "outlooks": [
            gossip.outlook(
                workshop.data.samples,
                work.batches * run_file.data.batch,
                work,
                facts,
                swarm.peers,
                mbit,
                waits=method.kind is not None,
            )
            for mbit in swarm.uplinks_mbit
        ],
    }


def _measure_rounds(run_file: RunFile, workshop: Workshop, swarm: Swarm) -> dict[str, Any]:
    parameters = list(workshop.model.module.parameters())
    run, me = RunId(bytes(32)), PeerId(os.urandom(32))
    trainer = workshop.trainer(run, run_file.method)
    processes = 1 if workshop.box is None else workshop.box.processes
    # The first work of a process compiles and allocates: the least of it is done before the clock.
    trainer.method.work(RoundContext(run, 0, me, (me,), lambda: True))
    end_s = time.monotonic() + run_file.rules.window_s
    context = RoundContext(run, 1, me, (me,), lambda: time.monotonic() >= end_s)
    started = time.monotonic()
    result = trainer.method.work(context)
    seconds = time.monotonic() - started
    work = trainer.method.weigh(result.payload)
    sent_bytes = len(result.payload) + len(result.attachment)
    samples = work * run_file.data.batch
    snapshot_bytes = Replica(trainer.method, trainer.initial_state, run, me, (me,)).stream().size
    return {
        "state_bytes": sum(
            tensor.numel() * tensor.element_size()
            for tensor in trainer.method.replicated_state().values()
        ),
        "snapshot_bytes": snapshot_bytes,
        "snapshot_every": run_file.rules.snapshot_every,
        "snapshots_kept": KEPT,
        "snapshots_bytes_max": bytes_max(snapshot_bytes),
        "heldout_loss": trainer.heldout(),
        "work_per_round": work,
        "seconds_per_unit": seconds / work,
        "payload_bytes": len(result.payload),
        "attachment_bytes": len(result.attachment),
        "summed_parts": _parts(run_file, workshop, swarm.peers),
        "memory": _memory(
            parameters,
            run_file,
            {**trainer.method.replicated_state(), **trainer.method.local_state()},
            processes,
        ),
        "cautions": list(run_file.method.cautions()),
        "outlooks": [
            outlook(
                workshop.data.samples,
                samples,
                seconds,
                sent_bytes,
                swarm.peers,
                mbit,
                overlaps=run_file.method.overlaps,
                parts=_parts(run_file, workshop, swarm.peers),
            )
            for mbit in swarm.uplinks_mbit
        ],
    }


def _parts(run_file: RunFile, workshop: Workshop, peers: int) -> int:
    rules = run_file.rules.saying(workshop.attaches(run_file.method)).rules()
    return rules.parts(peers)


def outlook(
    samples: int,  # of an epoch
    samples_per_round: int,  # of one peer
    work_s: float,  # that they take
    sent_bytes: int,  # a contribution
    peers: int,
    uplink_mbit: float,
    *,
    overlaps: bool,
    parts: int,  # that are summed; 0: contributions go whole
) -> dict[str, float]:
    """Alike peers on alike lines. Whoever holds a contribution passes it on, so that each uplink
    carries as much as each downlink: what all the others sent, once; or, in parts, those that a
    peer sums, and the sums of the rest.
    """
    copies = 2 * (peers - 1) / peers if parts else peers - 1
    exchange_s = copies * sent_bytes * 8 / (uplink_mbit * 1e6)
    round_s = max(work_s, exchange_s) if overlaps else work_s + exchange_s
    rounds = samples / (samples_per_round * peers)
    return {
        "uplink_mbit": uplink_mbit,
        "exchange_s": exchange_s,
        "round_s": round_s,
        "epoch_h": rounds * round_s / 3600,
    }


def _memory(
    parameters: Sequence[nn.Parameter],
    run_file: RunFile,
    state: Mapping[str, Tensor],  # of the method
    processes: int,
) -> dict[str, int]:
    """Bytes that stay between rounds, by part; what passes through a model comes on top. Of several
    processes, the first: the others have only what is shared out.
    """
    parts = {"model": sum(p.numel() * p.element_size() for p in parameters)}
    if run_file.method.takes_gradients:
        trained = (p for p in parameters if p.requires_grad)
        parts["gradient"] = sum(p.numel() * p.element_size() for p in trained)
    shared = {p.data_ptr() for p in parameters}  # SPSA's weights are the model's own
    for name, tensor in state.items():
        if tensor.data_ptr() not in shared:
            part = name.split(".")[0]
            parts[part] = parts.get(part, 0) + tensor.numel() * tensor.element_size()
    if processes > 1:
        shared_out = {part: parts[part] // processes for part in ("gradient", "inner")}
        parts |= {**shared_out, "share": parts["model"] // processes}
    return parts
