"""DNS rebinding: a browser that reaches a listener on loopback under a foreign name is refused, a proxy is not."""

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect as connect_socket

from tests.support.raw import dial
from tests.support.stacks import DIRECT, SANSIO, Stack, listening_socket, soon, until
from wsdeco import App, handle_socket
from wsdeco.connection.hosts import Hosts, checked_hosts
from wsdeco.connection.refusals import Refusal
from wsdeco.origins import is_loopback

NGINX: Final = shutil.which("nginx")


class Echo:
    async def on_message(self, text: str) -> str:
        return text


def echo(**options: Any) -> App:
    app = App(**options)
    app.add("/ws", Echo)

    @app.route("/page")
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("a page")

    return app


def handshake(host: str, *fields: str) -> bytes:
    head = ("GET /ws HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade")
    key = ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
    return "\r\n".join([*head, *key, *fields, "", ""]).encode()


async def test_a_page_whose_name_was_made_to_resolve_to_this_machine(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    if not stack.on_network:
        pytest.skip("nobody listens")
    async with stack.serve(echo()) as server:
        statuses: dict[str, int] = {}
        own = f":{server.port}"
        for host in (
            f"rebind.example{own}",
            f"a!b.example{own}",
            f"localhost{own}",
            f"127.0.0.1{own}",
            "proxied.example",
        ):
            async with dial(server) as peer:
                await peer.write(handshake(host, f"Origin: http://{host}"))
                statuses[host.removesuffix(own)] = await peer.status()
    assert statuses == {
        "rebind.example": 403,
        "a!b.example": 403,
        "localhost": 101,
        "127.0.0.1": 101,
        "proxied.example": 101,
    }
    said = [each for each in caplog.messages if "DNS rebinding" in each]
    assert len(said) == 2
    assert f"host rebind.example{own} is no name of this machine" in said[0]
    assert "App(allowed_hosts=[...])" in said[0]


@pytest.mark.parametrize("options", [{"allowed_hosts": ["MyApp.test"]}, {"allowed_hosts": ["*"]}])
async def test_a_name_that_the_app_allows(options: dict[str, Any]) -> None:
    async with DIRECT.serve(echo(**options)) as server, dial(server) as peer:
        host = f"myapp.test:{server.port}"
        await peer.write(handshake(host, f"Origin: http://{host}"))
        assert await peer.status() == 101


async def test_a_list_of_origins_decides_by_itself() -> None:
    app = App()
    app.add("/ws", Echo, allowed_origins=["http://myapp.test"])
    async with DIRECT.serve(app) as server:
        for origin, status in (("http://myapp.test", 101), (f"http://myapp.test:{server.port}", 403)):
            async with dial(server) as peer:
                await peer.write(handshake(f"myapp.test:{server.port}", f"Origin: {origin}"))
                assert await peer.status() == status


async def test_a_handler_in_an_endpoint_of_ones_own_is_reached_by_a_foreign_name() -> None:
    async def endpoint(websocket: WebSocket) -> None:
        await handle_socket(websocket, Echo)

    async with SANSIO.serve(Starlette(routes=[WebSocketRoute("/ws", endpoint)])) as server, dial(server) as peer:
        await peer.write(handshake(f"rebind.example:{server.port}"))
        assert await peer.status() == 403


def test_plain_requests_of_run(caplog: pytest.LogCaptureFixture) -> None:
    server: Any = echo(allowed_hosts=["myapp.test"]).run(port=0, background=True)
    with server, httpx.Client(base_url=server.http_url, trust_env=False) as client:
        answers = {
            host: client.get("/page", headers={"Host": f"{host}{port}", **forged})
            for host, port, forged in (
                ("rebind.example", f":{server.port}", {}),
                # The script of a page can add it.
                ("forging.example", f":{server.port}", {"X-Forwarded-For": "1.2.3.4"}),
                ("myapp.test", f":{server.port}", {}),
                ("localhost", f":{server.port}", {}),
                ("proxied.example", "", {}),
                ("proxied.example", ":80", {}),
            )
        }
    found = {host: (answer.status_code, answer.text) for host, answer in answers.items()}
    assert found == {
        "rebind.example": (403, "Forbidden"),
        "forging.example": (403, "Forbidden"),
        "myapp.test": (200, "a page"),
        "localhost": (200, "a page"),
        "proxied.example": (200, "a page"),
    }
    assert any("host rebind.example:" in each and "allowed_hosts" in each for each in caplog.messages)


@pytest.mark.parametrize(
    ("listener", "host", "kind", "field", "refused"),
    [
        (("127.0.0.1", 8000), "rebind.example:8000", "websocket", None, True),
        (("::1", 8000), "rebind.example:8000", "websocket", None, True),
        (("127.8.8.8", 8000), "REBIND.example.:8000", "websocket", None, True),
        (("127.0.0.1", 80), "rebind.example", "http", None, True),
        (("127.0.0.1", 443), "rebind.example", "http", None, True),
        (("127.0.0.1", 8000), "localhost.rebind.example:8000", "http", None, True),
        (("127.0.0.1", 8000), "rebind.example:8000", "http", b"x-forwarded-for", True),
        # A page cannot add fields to the handshake of its WebSocket.
        (("127.0.0.1", 8000), "proxied.example:8000", "websocket", b"x-forwarded-for", False),
        (("127.0.0.1", 8000), "proxied.example", "http", None, False),
        (("127.0.0.1", 8000), "proxied.example:443", "http", None, False),
        (("127.0.0.1", 8000), "localhost.:8000", "http", None, False),
        (("127.0.0.1", 8000), "app.localhost:8000", "http", None, False),
        # No address can be made to resolve to another.
        (("127.0.0.1", 8000), "192.168.1.5:8000", "http", None, False),
        (("::1", 8000), "[fe80::1]:8000", "http", None, False),
        (("::1", 8000), "[::1]:8000", "http", None, False),
        (("127.0.0.1", 8000), "", "http", None, False),
        (("192.168.1.5", 8000), "rebind.example:8000", "http", None, False),
        (("/run/ws.sock", None), "rebind.example:8000", "http", None, False),
        (None, "rebind.example:8000", "http", None, False),
    ],
)
def test_who_is_refused(
    listener: tuple[str, int | None] | None, host: str, kind: str, field: bytes | None, refused: bool
) -> None:
    headers = [(b"accept", b"*/*"), (b"host", host.encode()), *([(field, b"x")] if field is not None else ())]
    answer = Hosts().refusal({"type": kind, "server": listener, "headers": headers})
    assert (answer is not None) is refused
    assert not refused or (isinstance(answer, Refusal) and answer.status == 403)


def test_who_is_let_in_says_nothing_of_other_names_and_ports() -> None:
    hosts = Hosts()

    def is_let_in(host: bytes, port: int, *more: bytes) -> bool:
        headers = [(b"host", each) for each in (host, *more)]
        return hosts.refusal({"type": "http", "server": ("127.0.0.1", port), "headers": headers}) is None

    for _ in range(2):
        assert is_let_in(b"localhost:8000", 8000)
        assert is_let_in(b"site.example:9000", 8000)
        assert is_let_in(b"site.example:9000", 8000)
        assert not is_let_in(b"site.example:9000", 9000)
        assert not is_let_in(b"site.example:9000", 9000)
        assert is_let_in(b"localhost:8000", 8000)
        assert not is_let_in(b"localhost:8000", 8000, b"site.example:8000")


def test_a_long_host_with_control_characters_is_short_and_printable_in_the_log() -> None:
    scope = {"type": "http", "server": ("127.0.0.1", 80), "headers": [(b"host", b"\x1b[2J\r\n" + b"x" * 60_000)]}
    answer = Hosts().refusal(scope)
    assert answer is not None
    assert answer.advice is not None
    assert answer.advice.isprintable()
    assert len(answer.advice) < 1000


@pytest.mark.parametrize("hosts", ["myapp.test", b"myapp.test", 5, [b"myapp.test"]])
def test_what_is_no_list_of_hosts(hosts: Any) -> None:
    with pytest.raises(TypeError, match=r"allowed_hosts must .* such as"):
        App(allowed_hosts=hosts)


@pytest.mark.parametrize("host", ["http://myapp.test", "myapp.test:8000", "", "a b", "myapp.test/x", "me@myapp.test"])
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(ValueError, match="write it without scheme, port and path"):
        App(allowed_hosts=[host])


def test_hosts_are_compared_in_lower_case() -> None:
    assert checked_hosts(["MyApp.Test.", "other"]) == {"myapp.test", "other"}
    assert not is_loopback("myapp.test")


@asynccontextmanager
async def nginx(directory: Path, upstream: int, *fields: str) -> AsyncGenerator[int]:
    """Run nginx in front of a server; yield its port."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    with listening_socket() as probe:
        port = probe.getsockname()[1]
    settings = directory / "nginx.conf"
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = " ".join(f"{name}_temp_path {directory / name};" for name in names)
    headers = " ".join(f"proxy_set_header {field};" for field in fields)
    settings.write_text(
        f"""
        daemon off; master_process off; pid {directory / "pid"}; error_log stderr;
        events {{}}
        http {{
            access_log off; {places}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://127.0.0.1:{upstream}; proxy_http_version 1.1;
                    proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; {headers}
                }}
            }}
        }}
        """
    )
    process = subprocess.Popen(  # noqa: ASYNC220
        [NGINX, "-p", str(directory), "-c", str(settings), "-e", "stderr"], stderr=subprocess.DEVNULL
    )
    try:
        await until(lambda: process.poll() is not None or is_open(port))
        assert process.poll() is None
        yield port
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("fields", [("Host $http_host",), ("Host $host",), ("X-Real-IP $remote_addr",)])
async def test_nginx_on_the_same_machine(fields: tuple[str, ...], tmp_path: Path) -> None:
    server: Any = echo().run(port=0, background=True)
    try:
        async with nginx(tmp_path, server.port, *fields) as port:
            async with httpx.AsyncClient(trust_env=False) as client:
                url = f"http://127.0.0.1:{port}/page"
                page = await client.get(url, headers={"Host": f"public.example:{port}"})
            assert (page.status_code, page.text) == (200, "a page")
            url = f"ws://public.example:{port}/ws"
            async with connect_socket(url, host="127.0.0.1", port=port, proxy=None) as peer:
                await peer.send("through nginx")
                assert await soon(peer.recv()) == "through nginx"
    finally:
        await asyncio.to_thread(server.stop)
