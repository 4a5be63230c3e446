"""What a training run would take on real links: measured seconds and bytes, and a rate.

A peer's link carries as much up as down, both at once. Every byte that a peer receives is one that
some member sends, and members pass on what they hold; so, shared evenly, a round keeps uplinks as
busy as downlinks, and what a peer receives is what counts. Delays and the protocol's own messages
are left out.
"""

from typing import Final

from node.compare.records import Outcome

LINKS_MBIT: Final = (10, 100, 1000)

FORMULAS: Final = {
    "bytes_a_token_sent": "payload and attachment of one peer's contributions, each once, by the"
    " tokens that this peer trained on",
    "bytes_a_token_received": "payloads and attachments of all other peers, by the same tokens",
    "bytes_of_the_baseline": "a ring all-reduce of float32 gradients in every step: each peer sends"
    " and receives 2 * (peers - 1) / peers * 4 * trained parameters; counted, not sent",
    "hours": "rounds * (work_s + merge_s + exchange_s) / 3600, and exchange_s = 8 * received_bytes"
    " / (Mbit/s * 1e6): nothing overlaps",
    "hours_overlapped": "rounds * max(work_s + merge_s, exchange_s) / 3600: the least there can be,"
    " when the shorter of exchange and work hides behind the longer; no method here was run so",
    "work_s": "seconds of one peer's work in a round, as measured here: the median over rounds and"
    " peers; of CPU time where one thread works, else by the clock. Of the baseline: all peers'"
    " micro-batches by the number of peers, so that only a share of its optimizer's step counts",
}


def hours(outcome: Outcome, rounds: int, mbit: float, *, overlapped: bool) -> float:
    """Of all rounds, on links of so many Mbit/s."""
    compute_s = outcome.work_s + outcome.merge_s
    exchange_s = 8 * outcome.received_bytes / (mbit * 1e6)
    round_s = max(compute_s, exchange_s) if overlapped else compute_s + exchange_s
    return rounds * round_s / 3600
