"""Routers on loopback: one that speaks NAT-PMP, one that speaks UPnP, and the port they forward."""

import contextlib
import http.server
import re
import socket
import struct
import threading
from collections.abc import Callable


class PmpGateway:
    """RFC 6886 over a real UDP socket. `forward` really forwards the port that is mapped."""

    def __init__(self, *, lifetime_s: int = 7_200, code: int = 0, forward: bool = False) -> None:
        self.lifetime_s, self.code = lifetime_s, code
        self.external_port: int | None = None  # None: as wanted
        self.asked: list[tuple[int, int, int]] = []  # internal, wanted, lifetime
        self.garble: Callable[[bytes], bytes] = lambda answer: answer
        self.forwarder = Forwarder() if forward else None
        if self.forwarder is not None:
            self.external_port = self.forwarder.port
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            request, sender = self._socket.recvfrom(64)
            if not request:
                return
            if request == b"\0\0":
                answer = struct.pack("!BBHI4s", 0, 128, self.code, 1, socket.inet_aton("127.0.0.1"))
            else:
                answer = self._map(*struct.unpack("!BBHHHI", request))
            self._socket.sendto(self.garble(answer), sender)

    def _map(self, _version: int, _op: int, _: int, ours: int, wanted: int, life: int) -> bytes:
        self.asked.append((ours, wanted, life))
        external = self.external_port or wanted
        if self.forwarder is not None:
            self.forwarder.target = ours
        granted = min(life, self.lifetime_s)
        return struct.pack("!BBHIHHI", 0, 130, self.code, 1, ours, external if life else 0, granted)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()
        if self.forwarder is not None:
            self.forwarder.close()


class Forwarder:
    """What comes to `port` goes on to `target`, as through a router."""

    def __init__(self) -> None:
        self.target = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                outside, _ = self._listener.accept()
            except OSError:
                return
            try:
                inside = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                outside.close()
                continue
            self.connections += 1
            threading.Thread(target=_carry, args=(outside, inside), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _carry(outside: socket.socket, inside: socket.socket) -> None:
    """Both ways, until either side ends."""
    with outside, inside:
        back = threading.Thread(target=_pump, args=(inside, outside), daemon=True)
        back.start()
        _pump(outside, inside)
        back.join()


def _pump(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(65_536):
            other.sendall(data)
    except OSError:
        pass  # reset: the end, too
    for end in (one, other):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


_SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
_DESCRIPTION = f"""<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor>
</specVersion><device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><deviceList>
<device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><serviceList>
<service><serviceType>{_SERVICE}</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
<controlURL>/control</controlURL><eventSubURL>/events</eventSubURL><SCPDURL>/scpd.xml</SCPDURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>"""


class UpnpGateway:
    """As much of an Internet Gateway Device as a port mapping needs."""

    def __init__(self, *, leases: bool = True) -> None:
        self.actions: list[tuple[str, dict[str, str]]] = []
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, _DESCRIPTION)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                action = self.headers["SOAPAction"].strip('"').partition("#")[2]
                given = dict(re.findall(r"<New(\w+)>(.*?)</New", body))
                gateway.actions.append((action, given))
                if action == "AddPortMapping" and given["LeaseDuration"] != "0" and not leases:
                    self._answer(500, _fault(725, "OnlyPermanentLeasesSupported"))
                    return
                shown = "<NewExternalIPAddress>198.51.100.7</NewExternalIPAddress>"
                inner = shown if action == "GetExternalIPAddress" else ""
                self._answer(200, _envelope(f'<u:{action}Response xmlns:u="{_SERVICE}">'
                                            f"{inner}</u:{action}Response>"))  # fmt: skip

            def _answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/description.xml"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _envelope(body: str) -> str:
    soap = "http://schemas.xmlsoap.org/soap/envelope/"
    return f'<?xml version="1.0"?><s:Envelope xmlns:s="{soap}"><s:Body>{body}</s:Body></s:Envelope>'


def _fault(code: int, text: str) -> str:
    return _envelope(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        '<UPnPError xmlns="urn:schemas-upnp-org:control-1-0">'
        f"<errorCode>{code}</errorCode><errorDescription>{text}</errorDescription>"
        "</UPnPError></detail></s:Fault>"
    )
