"""A peer of several processes: one for each GPU of a machine.

The first, rank 0, is the peer: identity, disk, sockets, the replicated state and everything that is
exact are its own. The others hold a share of the model and of its optimizer, and do nothing but
take part in inner steps. How a model is shared out and how gradients meet is PyTorch's business
(FSDP2, DTensor).
"""
