"""Events, rates and metrics: bounded, true, and absent while unknown."""

import io
import json
import math
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.addresses import ListenError
from node.metrics import Endpoint, Metrics
from node.status import count_gossip
from node.telemetry import EventLog, Level, Rates

NOON = datetime(2026, 1, 2, 12, 0, 0, 5_000, tzinfo=UTC)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def a_log(path: Path, **options: object) -> EventLog:
    return EventLog(path, wall=lambda: NOON, clock_ms=lambda: 77, **options)  # type: ignore[arg-type]


def test_an_event_is_one_json_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with a_log(path) as log:
        log.info(
            "round_closed",
            round=3,
            loss=math.nan,
            entry=b"\xab" * 32,
            peers=(b"\x01" * 32,),
            level_of=Level.WARN,
            why={"late": None},
            text="line\nbreak",
        )
        log.debug("not_asked_for")
    assert lines(path) == [
        {
            "ts": "2026-01-02T12:00:00.005+00:00",
            "t_ms": 77,
            "level": "info",
            "event": "round_closed",
            "round": 3,
            "loss": "nan",
            "entry": "abababab",
            "peers": ["01010101"],
            "level_of": 30,
            "why": {"late": None},
            "text": "line\nbreak",
        }
    ]
    assert path.stat().st_mode & 0o077 == 0


def test_a_field_may_not_pose_as_the_events_own(tmp_path: Path) -> None:
    with a_log(tmp_path / "e") as log, pytest.raises(AssertionError):
        log.info("x", ts=1)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.text() | st.binary() | st.floats() | st.integers(), st.lists, max_leaves=8
    )
)
def test_any_field_makes_a_bounded_line(value: object) -> None:
    out = io.StringIO()
    with EventLog(Path("/dev/null"), echo=out) as log:
        log.info("x", value=value)
        assert log.lost == 0
    told = out.getvalue()
    assert told.endswith("\n")
    assert told[:-1].isprintable()


def test_the_files_stay_within_their_bound(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for life in range(3):  # a restart goes on in the same file
        with a_log(path, bytes_max=2_000, kept=3) as log:
            for number in range(200):
                log.info("tick", number=number, life=life)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["events.jsonl", "events.jsonl.1", "events.jsonl.2"]
    assert all(file.stat().st_size <= 2_000 for file in files)
    found = [line for file in reversed(files) for line in lines(file)]
    assert found[-1]["number"] == 199
    numbers = [line["number"] for line in found]
    assert numbers == list(range(200 - len(numbers), 200)), "nothing is lost at a rotation"


def test_a_line_torn_by_a_kill_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"ts": "2026')
    with a_log(path) as log:
        log.info("up")
    torn, whole = path.read_text().splitlines()
    assert torn == '{"ts": "2026'
    assert json.loads(whole)["event"] == "up"


def test_a_full_disk_loses_lines_counts_them_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.symlink_to("/dev/full")
    with a_log(path) as log:
        log.info("one")
        log.info("two")
        assert log.lost == 2
    path.unlink()
    with a_log(tmp_path / "gone" / "events.jsonl") as log:
        log.info("one")
        assert log.lost == 1
        (tmp_path / "gone").mkdir()
        log.info("two")
        assert log.lost == 0
        found = lines(log.path)
        assert [line["event"] for line in found] == ["log_lines_lost", "two"]
        assert found[0]["lines"] == 1


def test_a_person_reads_short_lines() -> None:
    out = io.StringIO()
    with a_log(Path("/dev/null"), echo=out, echo_level=Level.WARN) as log:
        log.info("quiet")
        log.warn("peer_lost", peer=b"\xcd" * 32, name="\x1b[31mred", loss=3.14159265)
    (line,) = out.getvalue().splitlines()
    assert line.endswith("warn  peer lost  peer=cdcdcdcd  name=?[31mred  loss=3.142")
    out.close()
    with a_log(Path("/dev/null"), echo=out) as log:
        log.info("a closed terminal stops nothing")


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with a_log(path) as log:
        work = [
            threading.Thread(target=lambda t=t: [log.info("x", t=t, n=n) for n in range(100)])
            for t in range(4)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
    assert {(line["t"], line["n"]) for line in lines(path)} == {
        (t, n) for t in range(4) for n in range(100)
    }


# -- rates -----------------------------------------------------------------------------------------


def test_a_rate_is_unknown_then_true_then_falls_to_zero() -> None:
    """P7: unknown is not zero."""
    rates = Rates(started_ms=1_000, window_ms=10_000, slots=20)
    assert rates.per_s(1_000) is None
    for tick in range(100):  # 10 a second for ten seconds
        rates.add(1_000 + tick * 100)
    assert rates.per_s(11_000) == pytest.approx(10.0, rel=0.06)
    assert rates.per_s(3_000_000) == 0.0


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 9)), max_size=60))
def test_rates_equal_the_slow_sum(events: list[tuple[int, int]]) -> None:
    rates = Rates(started_ms=0, window_ms=10_000, slots=10)
    for at, amount in sorted(events):
        rates.add(at, amount)
    now = 40_500
    oldest = (now // 1_000 - 10) * 1_000
    expected = sum(amount for at, amount in events if at >= oldest) * 1000 / (now - oldest)
    assert rates.per_s(now) == pytest.approx(expected)


# -- metrics ---------------------------------------------------------------------------------------


@pytest.fixture
def endpoint() -> Iterator[tuple[Endpoint, Metrics, list[bool]]]:
    metrics, well = Metrics(), [True]
    served = Endpoint(metrics, lambda: (well[0], "round 3, 4 members"))
    yield served, metrics, well
    served.close()


def fetch(endpoint: Endpoint, path: str, method: str = "GET") -> tuple[int, str]:
    url = f"http://127.0.0.1:{endpoint.port}{path}"
    request = urllib.request.Request(url, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_what_is_unknown_is_absent() -> None:
    """P7: what was never measured has no line."""
    metrics = Metrics()
    assert metrics.text() == b""
    metrics.set("peer_heldout_loss", 2.5)
    metrics.add("peer_digest_mismatches", 0)
    metrics.set("peer_bytes", 10, "in")
    metrics.set("peer_bytes", 15, "in")
    metrics.set_all("peer_members", {"alive": 3, "dead": 1})
    metrics.set_all("peer_members", {"alive": 2})
    metrics.observe("peer_apply_seconds", 0.25)
    metrics.observe("peer_apply_seconds", 0.5)
    told = [line for line in metrics.text().decode().splitlines() if not line.startswith("#")]
    assert sorted(told) == [
        "peer_apply_seconds_count 2.0",
        "peer_apply_seconds_sum 0.75",
        'peer_bytes_total{direction="in"} 15.0',
        "peer_digest_mismatches_total 0.0",
        "peer_heldout_loss 2.5",
        'peer_members{state="alive"} 2.0',
    ]
    metrics.set("peer_heldout_loss", None)
    assert metrics.get("peer_heldout_loss") is None
    assert b"heldout" not in metrics.text()


def test_two_nodes_in_one_process_do_not_share() -> None:
    one, two = Metrics(), Metrics()
    one.set("peer_round", 4)
    assert two.get("peer_round") is None
    assert two.text() == b""


@pytest.mark.parametrize(
    ("name", "label"), [("typo", ""), ("peer_members", ""), ("peer_round", "x")]
)
def test_misuse_is_a_bug(name: str, label: str) -> None:
    with pytest.raises(AssertionError):
        Metrics().set(name, 1, label)


def test_the_endpoint_serves_two_paths(endpoint: tuple[Endpoint, Metrics, list[bool]]) -> None:
    served, metrics, well = endpoint
    metrics.set("peer_round", 3)
    status, body = fetch(served, "/metrics")
    assert status == 200
    assert "peer_round 3.0" in body
    assert fetch(served, "/healthz") == (200, "round 3, 4 members\n")
    well[0] = False
    assert fetch(served, "/healthz")[0] == 503
    assert fetch(served, "/")[0] == 404
    assert fetch(served, "/metrics/../../etc/passwd")[0] == 404
    assert fetch(served, "/metrics", "POST")[0] == 501


def test_a_client_that_says_nothing_is_cut_off(
    endpoint: tuple[Endpoint, Metrics, list[bool]],
) -> None:
    served, _, _ = endpoint
    with socket.create_connection(("127.0.0.1", served.port)):
        assert fetch(served, "/healthz")[0] == 200


def test_the_endpoint_leaves_nothing_and_says_who_has_the_port() -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    served = Endpoint(Metrics(), lambda: (True, "well"))
    with pytest.raises(ListenError, match=f"pid {os.getpid()}") as caught:
        Endpoint(Metrics(), lambda: (True, "well"), port=served.port)
    assert "metrics port" in caught.value.hint
    served.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


GOSSIP = {
    "gossips": True,
    "exchanges_in_doubt": 1,
    "exchange": 12,
    "exchanges_done": 9,
    "exchanges_given_up": 2,
    "consensus_distance": 0.25,
    "own_heldout_loss": 1.5,
}


def test_gossip_is_told_in_numbers_and_what_is_not_known_is_absent() -> None:
    metrics = Metrics()
    count_gossip(metrics, GOSSIP)
    text = metrics.text().decode()
    for line in (
        "peer_exchange_number 12.0",
        'peer_exchanges_total{outcome="whole"} 9.0',
        'peer_exchanges_total{outcome="given_up"} 2.0',
        "peer_exchanges_in_doubt 1.0",
        "peer_consensus_distance 0.25",
        "peer_own_heldout_loss 1.5",
    ):
        assert line in text.splitlines(), text
    loading = {"gossips": True, "exchanges_in_doubt": 0, "gossip_activity": "loading"}
    count_gossip(metrics, loading)
    assert metrics.get("peer_exchanges_in_doubt") == 0
    for name in ("peer_exchange_number", "peer_consensus_distance", "peer_own_heldout_loss"):
        assert metrics.get(name) is None
    assert metrics.get("peer_exchanges", "whole") is None


def test_a_run_that_does_not_gossip_tells_nothing_of_exchanges() -> None:
    metrics = Metrics()
    count_gossip(metrics, {"gossips": False})
    assert "peer_exchange" not in metrics.text().decode()
