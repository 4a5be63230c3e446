"""A second driver: the same peers, codec and `perform`, under a virtual clock and a network that misbehaves."""
