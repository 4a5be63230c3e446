"""Methods against each other, and against training that exchanges every gradient: the same model on
the same tokens, without a network. `peer bench methods` prints what comes of it.
"""
