"""Peers that never agree on one model: they average with whom they meet, and end with one merge.

Nothing here knows the network. `pairings` says who meets whom, `mixing` what an exchange moves,
`exchange` how it goes chunk by chunk, `consensus` how far peers are apart, `merge` how it ends.
"""
