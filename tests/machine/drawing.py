"""Hypothesis strategies for every message, drawn from the dataclasses and the caps of the wire."""

from dataclasses import fields
from enum import IntEnum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import hypothesis.strategies as st

from protocol.codec import FILLER_BYTES_MAX, PARTS_MAX, encode_body
from protocol.entries import U32, U64, Body, Card, Entry
from protocol.messages import (
    Counted,
    Meet,
    Message,
    ModelHeld,
    NotMeeting,
    Part,
    PartRequest,
    PartsHeld,
    Ready,
    StretchFrame,
    StretchRequest,
    Sum,
    SumRequest,
    Verdict,
    Way,
)

ROUND = (1 << 48) - 1
KINDS: tuple[type, ...] = get_args(Message)

# Where a field's type alone does not say what the wire allows.
_BY_NAME: dict[tuple[type | None, str], st.SearchStrategy[Any]] = {
    (None, "round"): st.integers(0, ROUND),
    (None, "weight"): st.integers(0, U64),
    (None, "state"): st.integers(0, U64),
    (None, "expires_s"): st.integers(0, U64),
    (Card, "sequence"): st.integers(0, U64),
    (None, "sequence"): st.integers(0, U32),
    (None, "incarnation"): st.integers(0, U32),
    (None, "ballot"): st.integers(0, U32),
    (None, "accepted_ballot"): st.integers(0, U32),
    (None, "took_ms"): st.integers(0, U32),
    (None, "seat"): st.integers(0, 65_535),
    (None, "closer"): st.integers(0, 65_535),
    (None, "tip"): st.binary(min_size=8, max_size=8),
    (None, "view"): st.binary(min_size=8, max_size=8),
    (None, "nonce"): st.binary(min_size=8, max_size=8),
    (None, "proof"): st.binary(max_size=256),
    (None, "payload"): st.binary(min_size=1, max_size=64),
    (None, "manifest"): st.binary(min_size=1, max_size=64),
    (None, "size"): st.integers(0, (1 << 48) - 1),
    (None, "number"): st.integers(0, U32),
    (None, "differing"): st.integers(0, U32),
    (None, "wait_ms"): st.integers(0, 60_000),
    (None, "data"): st.binary(min_size=1, max_size=64),
    (None, "checks"): st.binary(min_size=8, max_size=64),
    (None, "epoch"): st.integers(0, U64),
    (None, "count"): st.integers(0, U64),
    (None, "wall_ms"): st.integers(0, U64),
    (None, "want"): st.integers(0, FILLER_BYTES_MAX),
    (None, "filler"): st.binary(max_size=64),
    (None, "frame"): st.binary(min_size=3, max_size=64),
    (Part, "number"): st.integers(0, PARTS_MAX - 1),
    (PartsHeld, "number"): st.integers(0, PARTS_MAX - 1),
    (PartRequest, "number"): st.integers(0, PARTS_MAX - 1),
    (Sum, "number"): st.integers(0, PARTS_MAX - 1),
    (SumRequest, "numbers"): st.lists(st.integers(0, PARTS_MAX - 1), max_size=8).map(tuple),
    (None, "seats"): st.binary(min_size=1, max_size=64),
    (Meet, "number"): st.integers(0, ROUND),
    (Meet, "view"): st.binary(min_size=16, max_size=16),
    (NotMeeting, "number"): st.integers(0, ROUND),
    (ModelHeld, "number"): st.integers(0, ROUND),
    (None, "tokens"): st.integers(0, U64),
    (None, "stretch"): st.integers(0, 65_535),
    (StretchRequest, "frames"): st.lists(st.integers(0, 4_095), max_size=8).map(tuple),
    (StretchFrame, "frame"): st.integers(0, 4_095),
    (StretchFrame, "frames"): st.integers(0, 4_096),
    (Ready, "stretches"): st.binary(min_size=1, max_size=64),
    (Counted, "stretches"): st.binary(min_size=1, max_size=64),
    (Verdict, "stretches"): st.binary(max_size=64),
    (Way, "took_ms"): st.none() | st.integers(0, U32),
}
_ID = st.binary(min_size=32, max_size=32)
_SIGNATURE = st.binary(min_size=64, max_size=64)
_TEXT = st.text(max_size=40).filter(str.isprintable)
_SCALAR = st.floats(width=32, allow_nan=False, allow_infinity=False)


_PIECES = st.lists(st.tuples(st.integers(0, U32), st.binary(min_size=1, max_size=64)), max_size=8)
_WHOLE: dict[str, st.SearchStrategy[Any]] = {
    "numbers": st.lists(st.integers(0, U32), max_size=8).map(tuple),
    "chunks": _PIECES.map(tuple),
    "have": st.none() | st.binary(max_size=64),
}


def _field(cls: type, name: str, hint: object) -> st.SearchStrategy[Any]:
    if name in _WHOLE and (cls, name) not in _BY_NAME:
        return _WHOLE[name]
    if hint is bytes and (name == "signature" or name.endswith("seal")):
        return _SIGNATURE
    if hint in (int, bytes) or (cls, name) in _BY_NAME:
        return _BY_NAME.get((cls, name), _BY_NAME.get((None, name), st.nothing()))
    return _typed(hint)


def _typed(hint: object) -> st.SearchStrategy[Any]:
    if getattr(hint, "__supertype__", None) is bytes:
        return _ID
    if get_origin(hint) in (UnionType, Union):  # of a NewType it is the latter
        (inner,) = (arg for arg in get_args(hint) if arg is not NoneType)
        return st.none() | _typed(inner)
    if get_origin(hint) is tuple:
        return st.lists(_typed(get_args(hint)[0]), max_size=3).map(tuple)
    if hint is Entry:
        return entries
    simple: dict[object, st.SearchStrategy[Any]] = {str: _TEXT, float: _SCALAR, bool: st.booleans()}
    if hint in simple:
        return simple[hint]
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return st.sampled_from(hint)
    assert isinstance(hint, type)
    return records(hint)


def records(cls: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    parts = {field.name: _field(cls, field.name, hints[field.name]) for field in fields(cls)}
    return st.builds(cls, **parts)


def _whole(body: Body, seal: bytes, signature: bytes) -> Entry:
    return Entry(body, encode_body(body), seal, (signature,) * len(body.lines))


bodies = records(Body)
entries: st.SearchStrategy[Entry] = st.deferred(
    lambda: st.builds(_whole, bodies, _SIGNATURE, _SIGNATURE)
)
messages: dict[type, st.SearchStrategy[Any]] = {kind: records(kind) for kind in KINDS}
any_message = st.one_of(*messages.values())
