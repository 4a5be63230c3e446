"""A second driver: the same peers, codec and `perform`, a virtual clock, and a bad network."""
