"""Who a peer is: one Ed25519 key. Everything that a peer must stand by is signed with it."""

from typing import Protocol

from nacl.bindings import crypto_sign_ed25519_pk_to_curve25519
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from protocol.ids import ID_BYTES, SIGNATURE_BYTES, PeerId


class Keys(Protocol):
    """Signing and checking. The simulator passes a cheaper stand-in."""

    @property
    def peer(self) -> PeerId: ...

    def sign(self, message: bytes) -> bytes: ...

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool: ...

    def is_peer(self, peer: PeerId) -> bool:
        """Is this a public key that a connection can be secured with?"""
        ...


class Identity:
    """A peer's own key, from a 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.peer = PeerId(bytes(self._key.verify_key))

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message).signature

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        return verify(peer, message, signature)

    def is_peer(self, peer: PeerId) -> bool:
        return is_public_key(peer)


def verify(peer: PeerId, message: bytes, signature: bytes) -> bool:
    """Did `peer` sign `message`? False for anything that is not a valid key or signature."""
    if len(peer) != ID_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(peer).verify(message, signature)
    except (CryptoError, ValueError, TypeError):
        return False
    return True


def is_public_key(peer: bytes) -> bool:
    """Is this a point of the curve that a CURVE key can be derived from?"""
    try:
        crypto_sign_ed25519_pk_to_curve25519(peer)
    except (CryptoError, ValueError, TypeError, RuntimeError):
        return False
    return True
