"""`peer simulate`: what a swarm would do, before anyone joins."""


def simulate() -> None:
    """placeholder"""
