"""Invites: one string, whatever a chat program did to it; and never a wrong one (P6)."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from protocol.entries import token_bytes
from protocol.errors import LocalError
from protocol.identity import Identity, verify
from protocol.ids import PeerId, RunId, digest
from protocol.invites import Contact, Invite, InviteError, decode_invite, encode_invite, mint_token

KEYS = Identity(bytes(32))
RUN = RunId(digest("run", b"an invite's run"))
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"

addresses = st.lists(st.text("abcdefgh:/.é0123456789", max_size=40), max_size=8).map(tuple)
contacts = st.lists(
    st.builds(Contact, st.binary(min_size=32, max_size=32).map(PeerId), addresses),
    min_size=1,
    max_size=8,
).map(tuple)
invites = st.builds(
    Invite,
    st.binary(min_size=32, max_size=32).map(RunId),
    st.binary(min_size=32, max_size=32),
    contacts,
    st.builds(
        mint_token,
        st.just(KEYS),
        st.just(RUN),
        st.integers(0, 2**64 - 1),
        st.binary(min_size=8, max_size=8),
    ),
)


def plain(count: int = 1) -> Invite:
    token = mint_token(KEYS, RUN, 1_800_000_000, b"nonce678")
    one = Contact(KEYS.peer, ("tcp://203.0.113.5:5555", "tcp://[2001:db8::5]:5555"))
    return Invite(RUN, bytes(range(32)), (one,) * count, token)


@given(invites)
@settings(max_examples=50)
def test_what_was_written_is_read(invite: Invite) -> None:
    assert decode_invite(encode_invite(invite)) == invite


@given(invites, st.data())
@settings(max_examples=50)
def test_white_space_does_not_matter(invite: Invite, data: st.DataObject) -> None:
    text = encode_invite(invite)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text)))
        text = (
            text[:at] + data.draw(st.sampled_from([" ", "\n", "\r\n", "\t", "\u00a0"])) + text[at:]
        )
    assert decode_invite(text) == invite


def test_every_changed_letter_is_noticed() -> None:
    """All places times all letters, and some characters that are no letters (P6)."""
    text = encode_invite(plain())
    for at, right in enumerate(text):
        for other in LETTERS + "A0_!":
            if other != right:
                with pytest.raises(InviteError):
                    decode_invite(text[:at] + other + text[at + 1 :])


def test_every_lost_or_added_letter_is_noticed() -> None:
    text = encode_invite(plain())
    for at in range(len(text)):
        with pytest.raises(InviteError):
            decode_invite(text[:at] + text[at + 1 :])
        with pytest.raises(InviteError):
            decode_invite(text[:at] + "a" + text[at:])


@pytest.mark.parametrize("keep", [5, 6, 20, 100, -40, -8, -7, -2, -1])
def test_a_cut_invite_says_so(keep: int) -> None:
    with pytest.raises(InviteError, match="cut short"):
        decode_invite(encode_invite(plain())[:keep])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an invite"),
        ("hello", "not an invite"),
        ("https://example.org/peer1", "not an invite"),
        ("peer2" + "a" * 80, "newer version"),
        (encode_invite(plain()).upper(), "not an invite"),
        ("peer1ABC", "no invite has: 'A'"),
        (encode_invite(plain()) + "aaaa", "behind its end"),
    ],
)
def test_the_message_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InviteError, match=message):
        decode_invite(text)


def test_a_changed_letter_in_the_middle_says_so() -> None:
    text = encode_invite(plain())
    middle = len(text) // 2
    other = "a" if text[middle] != "a" else "b"
    with pytest.raises(InviteError, match="changed"):
        decode_invite(text[:middle] + other + text[middle + 1 :])


def test_a_newer_version_with_a_good_checksum_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import protocol.invites as invites

    text = encode_invite(plain())
    raw = invites._from_base32(text[5:])
    newer = bytes((2,)) + raw[1:-4]
    with pytest.raises(InviteError, match="version 2"):
        decode_invite("peer1" + invites._to_base32(newer + invites._checksum(newer)))


@given(st.text(max_size=300))
@settings(max_examples=200)
def test_any_text_is_refused_by_name(text: str) -> None:
    for candidate in (text, "peer1" + text):
        with pytest.raises(InviteError):
            decode_invite(candidate)


@given(st.text(LETTERS, max_size=400))
@settings(max_examples=200)
def test_any_letters_are_refused_by_name(text: str) -> None:
    with pytest.raises(InviteError):
        decode_invite("peer1" + text)


@pytest.mark.parametrize("count", [0, 9])
def test_we_do_not_write_what_nobody_could_read(count: int) -> None:
    with pytest.raises(LocalError):
        encode_invite(plain(count))


def test_a_token_is_signed_by_its_minter() -> None:
    token = plain().token
    signed = token_bytes(RUN, KEYS.peer, token.expires_s, token.nonce)
    assert verify(KEYS.peer, signed, token.signature)
    other = token_bytes(RUN, KEYS.peer, token.expires_s + 1, token.nonce)
    assert not verify(KEYS.peer, other, token.signature)
