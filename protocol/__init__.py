"""What peers say and agree on: no clock, sockets, files, threads, randomness or tensors."""
