"""Peers that never agree on one model: they average with whom they meet, and end with one merge.

`pairings` says who meets whom, `mixing` what an exchange moves, `exchange` how it goes chunk by
chunk, `consensus` how far peers are apart, `merge` how it ends: these know no network. `gossiper`
is the thread that a peer's model has in a run, `journal` its disk, `checkpoints` what of it is in
the ledger; the protocol's side is `protocol/meetings.py`.
"""
