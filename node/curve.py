"""From one Ed25519 identity to the CURVE keys that ZeroMQ speaks.

A peer has a single key. Its CURVE (X25519) pair is the image of that key under libsodium's map
between the two curves, so whoever knows a PeerId can dial it without being told anything else. A
run's door is a pair that every invite lets its holder compute: it opens the socket for a stranger
and proves nothing more than having seen an invite.
"""

from dataclasses import dataclass, field

from blake3 import blake3
from nacl import bindings, exceptions
from zmq.utils import z85

_DOOR_CONTEXT = "peertrain v1 door: CURVE key of whoever holds an invite"

_FIELD = 2**255 - 19


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A CURVE key pair in Z85, as ZeroMQ's options want it."""

    public: bytes
    secret: bytes = field(repr=False)


def peer_id(seed: bytes) -> bytes:
    """The PeerId (Ed25519 public key) of a 32-byte identity seed."""
    public, _ = bindings.crypto_sign_seed_keypair(seed)
    return bytes(public)


def identity_keys(seed: bytes) -> CurveKeys:
    """The CURVE pair of a peer's own identity."""
    assert len(seed) == 32, "an identity seed has 32 bytes"
    public, secret = bindings.crypto_sign_seed_keypair(seed)
    return CurveKeys(
        public=z85.encode(bindings.crypto_sign_ed25519_pk_to_curve25519(public)),
        secret=z85.encode(bindings.crypto_sign_ed25519_sk_to_curve25519(secret)),
    )


def door_keys(door: bytes) -> CurveKeys:
    """The CURVE pair of a run's door secret."""
    assert len(door) == 32, "a door secret has 32 bytes"
    secret = blake3(door, derive_key_context=_DOOR_CONTEXT).digest()
    return CurveKeys(
        public=z85.encode(bindings.crypto_scalarmult_base(secret)),
        secret=z85.encode(secret),
    )


def curve_public(peer: bytes) -> bytes | None:
    """The CURVE public key (32 raw bytes) of a PeerId; None when the PeerId is no point that a
    signer could hold.
    """
    if len(peer) != 32 or int.from_bytes(peer, "little") % 2**255 >= _FIELD:
        return None  # the second case: a spare encoding of another peer's point
    try:
        return bytes(bindings.crypto_sign_ed25519_pk_to_curve25519(peer))
    except (exceptions.CryptoError, ValueError):
        return None
