"""Numbers for Prometheus. A value that is not known yet is absent: a zero here was measured.

Each node has its own registry, so several can live in one process. The optional endpoint answers
/metrics and /healthz on one loopback port and nothing else.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import TCPServer
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from node.addresses import ListenError, holder_of_port

REQUEST_WAIT_S = 2.0


class Kind(Enum):
    GAUGE = "gauge"
    COUNTER = "counter"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class Spec:
    kind: Kind
    help: str
    label: str | None = None


METRICS: Final[Mapping[str, Spec]] = {
    "peer_round": Spec(Kind.GAUGE, "Rounds that this peer has applied"),
    "peer_heldout_loss": Spec(Kind.GAUGE, "Held-out loss when it was last measured, nats"),
    "peer_train_loss": Spec(Kind.GAUGE, "Training loss of the last window of work, nats"),
    "peer_members": Spec(Kind.GAUGE, "Members by the state this peer holds them in", "state"),
    "peer_work": Spec(Kind.COUNTER, "Units of work (probes, batches) done on this machine"),
    "peer_bytes": Spec(Kind.COUNTER, "Payload bytes moved, before encryption", "direction"),
    "peer_messages": Spec(Kind.COUNTER, "Messages moved", "direction"),
    "peer_drops": Spec(Kind.COUNTER, "Messages dropped", "cause"),
    "peer_refused_handshakes": Spec(Kind.COUNTER, "Connections refused"),
    "peer_digest_mismatches": Spec(Kind.COUNTER, "Rounds whose digest differed from the ledger's"),
    "peer_repairs": Spec(Kind.COUNTER, "Times that damage to the state was found and repaired"),
    "peer_disk_bytes": Spec(Kind.GAUGE, "Disk that this peer's folder takes", "part"),
    "peer_chunk_bytes": Spec(Kind.COUNTER, "Chunks sent to others and fetched", "direction"),
    "peer_damaged_chunks": Spec(Kind.COUNTER, "Chunks on disk that no longer fitted their names"),
    "peer_exchange_number": Spec(Kind.GAUGE, "Gossip: exchange that this peer is at"),
    "peer_exchanges": Spec(Kind.COUNTER, "Gossip: exchanges, by how they ended", "outcome"),
    "peer_exchanges_in_doubt": Spec(Kind.GAUGE, "Gossip: exchanges of which the end is not known"),
    "peer_consensus_distance": Spec(
        Kind.GAUGE, "Gossip: mean squared distance of members' models from their mean, estimated"
    ),
    "peer_own_heldout_loss": Spec(
        Kind.GAUGE, "Gossip: held-out loss of this peer's own model, nats"
    ),
    "peer_apply_seconds": Spec(Kind.SUMMARY, "Time to apply one closed round"),
}


class Metrics:
    """Values by metric and label. Safe to call from any thread."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._values: dict[str, dict[str, float]] = {}
        self._sums: dict[str, tuple[int, float]] = {}
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Board(self))

    def set(self, name: str, value: float | None, label: str = "") -> None:
        """A gauge, or a counter whose total is kept elsewhere. None: unknown (again)."""
        _check(name, label, Kind.GAUGE, Kind.COUNTER)
        with self._turn:
            if value is None:
                self._values.get(name, {}).pop(label, None)
            else:
                self._values.setdefault(name, {})[label] = value

    def set_all(self, name: str, values: Mapping[str, float]) -> None:
        """All labels of one metric at once; those not named become unknown."""
        for label in values:
            _check(name, label, Kind.GAUGE, Kind.COUNTER)
        with self._turn:
            self._values[name] = dict(values)

    def add(self, name: str, amount: float = 1.0, label: str = "") -> None:
        """Adding 0 says: known, and none so far."""
        _check(name, label, Kind.COUNTER)
        assert amount >= 0, "a counter never falls"
        with self._turn:
            held = self._values.setdefault(name, {})
            held[label] = held.get(label, 0.0) + amount

    def observe(self, name: str, value: float) -> None:
        _check(name, "", Kind.SUMMARY)
        with self._turn:
            count, total = self._sums.get(name, (0, 0.0))
            self._sums[name] = (count + 1, total + value)

    def get(self, name: str, label: str = "") -> float | None:
        """None while unknown."""
        _check(name, label, Kind.GAUGE, Kind.COUNTER)
        with self._turn:
            return self._values.get(name, {}).get(label)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def families(self) -> Iterable[Metric]:
        with self._turn:
            values = {name: dict(held) for name, held in self._values.items() if held}
            sums = dict(self._sums)
        for name, spec in METRICS.items():
            if name in values:
                yield _family(name, spec, values[name])
            elif name in sums:
                count, total = sums[name]
                yield SummaryMetricFamily(name, spec.help, count_value=count, sum_value=total)


class _Board(Collector):
    """What the registry asks at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families()


def _check(name: str, label: str, *kinds: Kind) -> None:
    spec = METRICS.get(name)
    assert spec is not None, f"unknown metric {name!r}"
    assert spec.kind in kinds, f"{name} is a {spec.kind.value}"
    assert (spec.label is None) == (label == ""), f"{name} takes label {spec.label!r}"


def _family(name: str, spec: Spec, values: Mapping[str, float]) -> Metric:
    labels = [spec.label] if spec.label else []
    family: GaugeMetricFamily | CounterMetricFamily
    if spec.kind is Kind.GAUGE:
        family = GaugeMetricFamily(name, spec.help, labels=labels)
    else:
        family = CounterMetricFamily(name, spec.help, labels=labels)
    for label, value in sorted(values.items()):
        family.add_metric([label] if spec.label else [], value)
    return family


Health = Callable[[], tuple[bool, str]]  # (is well, one sentence)


class Endpoint:
    """Serves one node's metrics. Raises ListenError when the port cannot be had."""

    def __init__(
        self, metrics: Metrics, health: Health, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        try:
            self._server = _Server((host, port), metrics, health)
        except OSError as error:
            holder = holder_of_port(port)
            raise ListenError(
                f"cannot serve metrics on {host}:{port}: {error.strerror} (held by {holder})",
                "choose another metrics port in the node settings",
            ) from error
        self.host, self.port = host, int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="peer-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(HTTPServer):
    """One request at a time: a scrape takes milliseconds, and nobody can pile up threads."""

    def __init__(self, address: tuple[str, int], metrics: Metrics, health: Health) -> None:
        self.metrics = metrics
        self.health = health
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer would look its own name up and may wait for a name server.
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_WAIT_S
    server_version = "peer"
    sys_version = ""

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, self.server.metrics.text())
            case "/healthz":
                is_well, sentence = self.server.health()
                status = 200 if is_well else 503
                self._answer(status, "text/plain; charset=utf-8", f"{sentence}\n".encode())
            case _:
                self._answer(404, "text/plain; charset=utf-8", b"only /metrics and /healthz\n")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not events."""
