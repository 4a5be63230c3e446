"""An invite: one string that a person pastes to a friend, and all that the friend needs to join.

It is `peer1`, then lowercase base32 of: a version byte, the length of what follows (2 bytes), a
msgpack record, and the first 4 bytes of a BLAKE3 hash over all that. Chat programs wrap lines and
add blanks, so white space is skipped wherever it stands; apart from that there is one spelling.
The checksum is for slips of the hand; what an invite allows is protected by the token's signature.
"""

import re
from base64 import b32decode, b32encode
from dataclasses import dataclass
from typing import Final

import msgpack

from protocol.codec import unpack
from protocol.entries import ADDRESS, ADDRESSES_MAX, HASH, PEER, TOKEN, Token, token_bytes
from protocol.errors import LocalError, RemoteError
from protocol.identity import Keys
from protocol.ids import PeerId, RunId, digest
from protocol.wire import blob, many, record

PREFIX: Final = "peer1"
VERSION: Final = 1
CONTACTS_MAX: Final = 8
DOOR_BYTES: Final = 32
TEXT_MAX: Final = 65_536  # characters looked at: a clipboard may hold anything

_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")
_HEAD_BYTES: Final = 3  # version and length
_CHECK_BYTES: Final = 4


class InviteError(RemoteError):
    """This text is no invite that we can use; the message says why."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A member that can be dialled."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Invite:
    run: RunId
    door: bytes  # the secret of which every guest's connection key is made
    contacts: tuple[Contact, ...]  # 1 to 8, the best first
    token: Token


_CONTACT: Final = record(Contact, PEER, many(ADDRESS, ADDRESSES_MAX))
_INVITE: Final = record(
    Invite, HASH, blob(DOOR_BYTES, DOOR_BYTES), many(_CONTACT, CONTACTS_MAX), TOKEN
)


def mint_token(keys: Keys, run: RunId, expires_s: int, nonce: bytes) -> Token:
    """The right to join `run` until `expires_s` (Unix time); `nonce` is 8 random bytes."""
    signature = keys.sign(token_bytes(run, keys.peer, expires_s, nonce))
    return Token(keys.peer, expires_s, nonce, signature)


def encode_invite(invite: Invite) -> str:
    """Raises LocalError for an invite that `decode_invite` would refuse."""
    body = bytes(msgpack.packb(_INVITE.write(invite)))
    if len(body) > 0xFFFF:
        raise LocalError(f"an invite of {len(body)} bytes")
    checked = bytes((VERSION,)) + len(body).to_bytes(2, "big") + body
    text = PREFIX + _to_base32(checked + _checksum(checked))
    try:
        assert decode_invite(text) == invite
    except InviteError as error:
        raise LocalError(f"an invite that nobody could use: {error}") from error
    return text


def decode_invite(text: str) -> Invite:
    """The invite in a pasted text. Raises InviteError with a message for the person who pasted."""
    letters = "".join(text[:TEXT_MAX].split())
    if not letters.startswith(PREFIX):
        if re.match("peer[0-9]", letters):
            raise InviteError("this invite needs a newer version of peer")
        raise InviteError(f"this is not an invite: it does not begin with {PREFIX}")
    letters = letters[len(PREFIX) :]
    wrong = next((letter for letter in letters if letter not in _LETTERS), None)
    if wrong is not None:
        raise InviteError(f"this invite holds a character that no invite has: {wrong!r}")
    raw = _from_base32(letters)
    body = _checked(raw, letters)
    if raw[0] != VERSION:
        raise InviteError(f"this invite is of version {raw[0]}, which needs a newer peer")
    try:
        invite = _INVITE.read(unpack(body))
    except RemoteError as error:
        raise InviteError(f"this invite is damaged: {error}") from error
    if not invite.contacts:
        raise InviteError("this invite names nobody to ask")
    return invite


def _checked(raw: bytes, letters: str) -> bytes:
    """What stands between head and checksum, if all is as it was made."""
    if len(raw) <= _HEAD_BYTES + _CHECK_BYTES:
        raise InviteError("this invite is cut short: paste all of it")
    length = int.from_bytes(raw[1:_HEAD_BYTES], "big")
    end = _HEAD_BYTES + length
    if raw[end:] == _checksum(raw[:end]) and _to_base32(raw) == letters:
        return raw[_HEAD_BYTES:end]
    if len(raw) < end + _CHECK_BYTES:
        raise InviteError("this invite is cut short: paste all of it")
    if len(raw) > end + _CHECK_BYTES:
        raise InviteError("this invite has something behind its end: paste it alone")
    raise InviteError("a character of this invite was changed: copy it again")


def _checksum(checked: bytes) -> bytes:
    return digest("invite", checked)[:_CHECK_BYTES]


def _to_base32(raw: bytes) -> str:
    return b32encode(raw).decode().rstrip("=").lower()


def _from_base32(letters: str) -> bytes:
    """Whole bytes; a last letter that completes none is left out."""
    padded = letters + "a" * (-len(letters) % 8)
    return b32decode(padded.upper())[: len(letters) * 5 // 8]
