"""A port of the router's: asked for, renewed, given back. Routers are real sockets on loopback."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node import natpmp
from node.config import NodeConfig
from node.errors import ConfigError
from node.front import Front, check
from node.natpmp import Mapping, NoMapping, default_gateway, map_tcp
from node.portmap import LIFETIME_S, NatPmp, PortMap, Upnp, routers
from tests.shell.gateways import PmpGateway, UpnpGateway


@pytest.fixture
def gateway() -> Iterator[PmpGateway]:
    gateway = PmpGateway()
    yield gateway
    gateway.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natpmp, "_FIRST_WAIT_S", 0.01)


def test_nat_pmp(gateway: PmpGateway) -> None:
    assert map_tcp(gateway.address, 7700, 7700, 60) == Mapping("127.0.0.1", 7700, 60)
    gateway.external_port = 40_000
    assert map_tcp(gateway.address, 7700, 7700, 90_000) == Mapping("127.0.0.1", 40_000, 7_200)
    natpmp.unmap_tcp(gateway.address, 7700)
    assert gateway.asked == [(7700, 7700, 60), (7700, 7700, 90_000), (7700, 0, 0)]


@pytest.mark.parametrize(
    ("garble", "says"),
    [
        (lambda answer: answer[:3] + b"\x02" + answer[4:], "does not allow it"),
        (lambda answer: answer[:3] + b"\x09" + answer[4:], "refuses, code 9"),
        (lambda answer: answer[:-1], "something else than NAT-PMP"),
        (lambda answer: b"", "something else than NAT-PMP"),
        (lambda answer: b"\x02" + answer[1:], "something else than NAT-PMP"),
        (lambda answer: answer[:9] + b"\x07" + answer[10:], "another port"),
    ],
)
def test_what_a_router_may_answer(
    gateway: PmpGateway, garble: Callable[[bytes], bytes], says: str
) -> None:
    gateway.garble = lambda answer: answer if says == "another port" and len(answer) == 12 else (
        garble(answer)
    )  # fmt: skip
    with pytest.raises(NoMapping, match=says):
        map_tcp(gateway.address, 7700, 7700, 60)


def test_nobody_answers(impatient: None) -> None:
    gateway = PmpGateway()
    gateway.close()
    told: list[str] = []
    ports = PortMap([NatPmp(gateway.address)], 7700, told.append)
    assert ports.open() is None
    assert ports.address is None
    assert told[0].startswith("no port was mapped: NAT-PMP: 127.0.0.1")
    ports.keep()
    ports.close()


def test_a_mapping_from_beginning_to_end(gateway: PmpGateway) -> None:
    """The router grants little and moves the port: the address follows. The port is given back."""
    told: list[str] = []
    ports = PortMap([NatPmp(gateway.address)], 7700, told.append)
    front = Front(("tcp://0.0.0.0:7700",), ("tcp://192.168.0.9:7700",), ports)
    front.open()
    assert front.addresses() == ("tcp://127.0.0.1:7700", "tcp://192.168.0.9:7700")
    assert "no public address" in told[1]
    gateway.external_port, gateway.lifetime_s = 40_000, 100
    assert ports.renew() == 50.0
    assert front.addresses()[0] == "tcp://127.0.0.1:40000"
    gateway.code = 4
    assert ports.renew() == 50.0
    assert told[-1].startswith("the port mapping could not be renewed")
    assert front.addresses()[0] == "tcp://127.0.0.1:40000"
    gateway.code = 0
    front.close()
    assert gateway.asked[0] == (7700, 7700, LIFETIME_S)
    assert gateway.asked[-1] == (7700, 0, 0)


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="no port to map"):
        check(NodeConfig(map_port=True, listen=()))
    check(NodeConfig(map_port=True))


def test_which_routers_are_asked(tmp_path: Path) -> None:
    assert [way.name for way in routers("192.0.2.1")] == ["NAT-PMP"]
    assert [way.name for way in routers("http://192.0.2.1/d.xml")] == ["UPnP"]
    assert routers(None)[-1].name == "UPnP"
    table = tmp_path / "route"
    table.write_text(
        "Iface\tDestination\tGateway\tFlags\n"
        "eth0\t000200C0\t00000000\t0001\n"
        "eth0\t00000000\t010200C0\t0003\n"
    )
    assert default_gateway(table) == "192.0.2.1"
    assert default_gateway(tmp_path / "none") is None


@pytest.mark.parametrize("leases", [True, False])
def test_upnp(leases: bool) -> None:
    """With the real client library. A router without leases gets a mapping without end."""
    pytest.importorskip("miniupnpc")
    gateway = UpnpGateway(leases=leases)
    try:
        ports = PortMap([Upnp(gateway.url)], 7700, lambda text: None)
        assert ports.open() == "tcp://198.51.100.7:7700"
        ports.close()
    finally:
        gateway.close()
    added = [given for action, given in gateway.actions if action == "AddPortMapping"]
    assert [given["LeaseDuration"] for given in added] == [str(LIFETIME_S), "0"][: 2 - leases]
    assert added[0]["ExternalPort"] == added[0]["InternalPort"] == "7700"
    assert gateway.actions[-1] == (
        "DeletePortMapping",
        {"RemoteHost": "", "ExternalPort": "7700", "Protocol": "TCP"},
    )


def test_upnp_where_nobody_is() -> None:
    pytest.importorskip("miniupnpc")
    told: list[str] = []
    assert PortMap([Upnp("http://127.0.0.1:9/d.xml")], 7700, told.append).open() is None
    assert told[0].startswith("no port was mapped: UPnP: ")
