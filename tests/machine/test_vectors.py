"""The wire as it was published: any change of a byte shows up here, and needs a new version."""

import json
from pathlib import Path

import pytest

from protocol.codec import decode, encode
from protocol.entries import Entry, contribution_bytes, leave_bytes, seal_bytes, token_bytes
from protocol.identity import verify
from protocol.invites import decode_invite
from protocol.messages import Closed, Contribute, Evidence, Leave
from tests.machine import vectors
from tests.machine.drawing import KINDS

FILES = sorted(vectors.FOLDER.glob("*.json"))
FRAMES = [path for path in FILES if path.name[:2].isdigit()]


def test_every_kind_has_a_vector() -> None:
    assert [path.stem[3:] for path in FRAMES] == [kind.__name__ for kind in KINDS]


@pytest.mark.parametrize("path", FRAMES, ids=lambda path: path.stem)
def test_frames_are_read_as_published(path: Path) -> None:
    golden = json.loads(path.read_text())
    frame = bytes.fromhex(golden["frame"])
    assert (frame[0], frame[1]) == (1, golden["number"])
    message = decode(frame)
    assert type(message).__name__ == golden["kind"]
    assert vectors.plain(message) == golden["fields"]
    assert encode(message) == frame


def test_nothing_else_has_changed() -> None:
    """Hashes, signed bytes, ranking, turns and the invite, and no file without a source."""
    made = {name: vectors.render(value) for name, value in vectors.vectors().items()}
    assert {path.stem: path.read_text() for path in FILES} == made


def golden_entry() -> Entry:
    message = decode(bytes.fromhex(json.loads(FRAMES[17].read_text())["frame"]))
    assert isinstance(message, Closed)
    return message.entry


def test_the_signatures_in_the_vectors_hold() -> None:
    """With real keys, read from the files alone."""
    entry = golden_entry()
    run, members = vectors.RUN, vectors.ROSTER.members
    body = entry.body
    assert verify(
        members[body.closer], seal_bytes(run, body.round, body.parent, entry.hash), entry.seal
    )
    for line, signature in zip(body.lines, entry.signatures, strict=True):
        signed = contribution_bytes(run, body.round, body.parent, body.state, line)
        assert verify(members[line.seat], signed, signature)
    (departure,) = body.departures
    leaver = members[departure.seat]
    assert verify(leaver, leave_bytes(run, leaver, departure.round), departure.proof)


def test_the_golden_invite_is_read() -> None:
    golden = json.loads((vectors.FOLDER / "invite.json").read_text())
    invite = decode_invite(golden["text"])
    assert vectors.plain(invite) == golden["fields"]
    token = invite.token
    signed = token_bytes(invite.run, token.minter, token.expires_s, token.nonce)
    assert verify(token.minter, signed, token.signature)


def test_single_messages_are_signed_as_specified() -> None:
    messages = {type(message): message for message in vectors.messages()}
    leave, contribute = messages[Leave], messages[Contribute]
    evidence = messages[Evidence]
    assert isinstance(leave, Leave)
    assert isinstance(contribute, Contribute)
    assert isinstance(evidence, Evidence)
    assert verify(leave.peer, leave_bytes(vectors.RUN, leave.peer, leave.round), leave.signature)
    body = golden_entry().body
    signed = contribution_bytes(vectors.RUN, 0, body.parent, contribute.state, body.lines[1])
    assert verify(vectors.THREE.peer, signed, contribute.signature)
    for name, seal in (
        (evidence.first, evidence.first_seal),
        (evidence.second, evidence.second_seal),
    ):
        signed = seal_bytes(vectors.RUN, evidence.round, evidence.parent, name)
        assert verify(evidence.closer, signed, seal)
