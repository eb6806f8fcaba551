"""The examples run as their users run them, driven by a WebSocket client and by a browser."""

import ast
import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, Final, TypeAlias

import pytest
from httpx import AsyncClient
from playwright.async_api import Browser, BrowserContext, Locator, Page, expect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from tests.support.browser import PATIENCE, find_browser, open_browser, open_tab
from tests.support.checkout import CHECKOUT

EXAMPLES: Final = CHECKOUT / "examples"
EXAMPLE_NAMES: Final = sorted(path.stem for path in EXAMPLES.glob("*.py"))

MARKUP: Final = """<img src="nowhere" onerror="window.hacked = 1"><script>window.hacked = 1</script>"""
"""What must stay text in every page."""

RECORD_DELAYS: Final = """
    window.delays = [];
    const laterInFact = window.setTimeout;
    window.setTimeout = (callback, delay) => {
        delays.push(delay);
        return delays.length < 8 ? laterInFact(callback, 0) : 0;
    };
"""
"""Lets a page that reconnects do so at once, eight times, and keeps how long it wanted to wait."""

HOLD_BACK: Final = """
    window.heldBack = null;
    window.skipped = window.asked = window.heard = 0;
    window.handOver = () => { const events = heldBack; heldBack = null; events.forEach((deliver) => deliver()); };
    const now = performance.now.bind(performance);
    performance.now = () => now() + skipped;
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (data) {
        if (data === "") asked += 1;
        send.call(this, data);
    };
    const { set } = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage");
    Object.defineProperty(WebSocket.prototype, "onmessage", {
        set(receive) {
            set.call(this, receive && ((event) => {
                heard += 1;
                if (heldBack === null) receive(event); else heldBack.push(() => receive(event));
            }));
        },
    });
"""
"""Lets a page wait for messages that have arrived, and for time that has not passed."""

StartExample: TypeAlias = Callable[..., AbstractAsyncContextManager["ExampleServer"]]


class ExampleServer:
    """A server in a subprocess, found by the address that it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: list[str] = []
        self.port = 0

    async def expect_line(self, pattern: str) -> re.Match[str]:
        """Wait for a line of output that `pattern` is found in."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE):
                while line := (await self._process.stdout.readline()).decode():
                    self._lines.append(line)
                    found = re.search(pattern, line)
                    if found is not None:
                        return found
        except TimeoutError:
            pass
        pytest.fail(f"the server did not print {pattern!r}, but:\n{''.join(self._lines)}")

    async def wait_until_listening(self) -> None:
        found = await self.expect_line(r"(?:Serving|running on) http://127\.0\.0\.1:(\d+)")
        self.port = int(found[1])

    def url(self, scheme: str, path: str) -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def connect(self, path: str) -> connect:
        # With a bound on its queue, the library waits `close_timeout` where it has not read all of it.
        return connect(self.url("ws", path), proxy=None, open_timeout=PATIENCE, close_timeout=PATIENCE, max_queue=None)

    async def stop(self) -> int:
        """Ask the server to end; return its exit code."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(PATIENCE):
                rest, _ = await self._process.communicate()
        except TimeoutError:
            self._process.kill()
            await self._process.communicate()
            pytest.fail(f"the server did not end on SIGTERM:\n{''.join(self._lines)}")
        self._lines.append(rest.decode())
        assert "Traceback" not in "".join(self._lines), "".join(self._lines)
        return await self._process.wait()


@asynccontextmanager
async def running(*arguments: str, port: int = 0) -> AsyncGenerator[ExampleServer, None]:
    """Run Python with `arguments` in the checkout, until the end of the context."""
    environment = {**os.environ, "PORT": str(port), "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=CHECKOUT,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    server = ExampleServer(process)
    try:
        await server.wait_until_listening()
        yield server
    finally:
        await server.stop()


def script(name: str, port: int = 0) -> AbstractAsyncContextManager[ExampleServer]:
    """Start an example as its module says."""
    return running(f"examples/{name}.py", port=port)


def imported(name: str, port: int = 0) -> AbstractAsyncContextManager[ExampleServer]:
    """Start an example on uvicorn's own command line."""
    app = "app" if name == "fastapi_app" else "ws"
    return running("-m", "uvicorn", f"examples.{name}:{app}", "--port", str(port))


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


# The examples themselves.


@pytest.mark.parametrize("start", [script, imported])
@pytest.mark.parametrize("name", EXAMPLE_NAMES)
async def test_example_starts_and_stops(name: str, start: StartExample) -> None:
    async with start(name) as server:
        code = await server.stop()
    # uvicorn itself dies of the signal once it has shut down.
    by_uvicorn = start is imported or name == "fastapi_app"
    assert code == (-signal.SIGTERM if by_uvicorn else 0)


@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_example_is_one_idea(name: str) -> None:
    source = (EXAMPLES / f"{name}.py").read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(source), clean=False)
    assert docstring is not None
    assert f"python examples/{name}.py" in docstring
    code = [line for line in source.replace(docstring, "").splitlines() if line.strip()]
    assert 10 <= len(code) <= 40


@pytest.mark.parametrize("name", ["chat", "flexible_handler"])
def test_page_needs_nothing_from_elsewhere(name: str) -> None:
    page = (EXAMPLES / f"{name}.html").read_text("utf-8")
    assert re.findall(r"""https?://|@import|\ssrc=|url\(""", page) == []


# The recipes.


async def expect_text(client: ClientConnection, pattern: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while re.fullmatch(pattern, text := str(await client.recv())) is None:
            assert "error" not in text


async def test_json_messages_are_dataclasses() -> None:
    async with script("json_messages") as server, server.connect("/sum") as client:
        await client.send('{"numbers": [1, 2, 3]}')
        assert await next_event(client) == {"total": 6.0}
        await client.send('{"numbers": "all"}')
        assert (await next_event(client))["code"] == "invalid"


async def test_a_post_reaches_the_pages_of_one_user() -> None:
    async with script("notify") as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.connect(f"/users/{user}")) for user in (7, 7, 8)]
        for user, reached in ((7, 2), (8, 1), (9, 0)):
            async with AsyncClient(trust_env=False, timeout=PATIENCE) as http:
                answer = await http.post(server.url("http", f"/users/{user}/notify"), content=f"for {user}")
            assert answer.text == f"reached {reached}\n"
        for client, user in zip(clients, (7, 7, 8), strict=True):
            await expect_text(client, f"for {user}")


async def test_a_token_comes_in_four_ways() -> None:
    ways: list[dict[str, Any]] = [
        {"additional_headers": {"Authorization": "Bearer TOKEN"}},
        {"subprotocols": ["chat", "bearer.TOKEN"]},
        {"additional_headers": {"Cookie": "session=TOKEN"}},
        {},
    ]
    async with script("sign_in") as server:
        for way in ways:
            for token, user in (("ann-1", "ann"), ("eve-1", None)):
                options = ast.literal_eval(repr(way).replace("TOKEN", token))
                async with connect(server.url("ws", "/ws"), proxy=None, **options) as client:
                    assert client.subprotocol == ("chat" if "subprotocols" in way else None)
                    if not way:
                        await client.send(token)
                    if user is None:
                        with pytest.raises(ConnectionClosedError, match=r"4401.*unknown token"):
                            await client.recv()
                        continue
                    for text in ("hi", "renew bob-1"):
                        await client.send(text)
                        await expect_text(client, f"{'bob' if 'bob' in text else user}: {text}")


async def test_a_dashboard_has_the_last_value_at_once_and_then_the_next_ones() -> None:
    async with script("dashboard") as server:
        for _ in range(2):
            async with server.connect("/cpu") as client:
                await expect_text(client, r"\d+\.\d\d s of CPU")
                await expect_text(client, r"\d+\.\d\d s of CPU")


async def test_the_task_of_a_room_runs_as_long_as_somebody_is_there() -> None:
    async with script("room_clock") as server:
        async with server.connect("/clock/tea") as ann, server.connect("/clock/tea") as bob:
            await expect_text(ann, "tea: 1")
            await expect_text(bob, "tea: [2-9]")
        # Seconds of the server: within two of its ticks a task sees that its room is empty.
        async with server.connect("/clock/coffee") as eve:
            await expect_text(eve, "coffee: 4")
        async with server.connect("/clock/tea") as ann:
            assert await ann.recv() == "tea: 1"


async def test_fastapi_supplies_what_a_handler_needs() -> None:
    async with script("fastapi_app") as server:
        async with server.connect("/greet?token=Ann") as client:
            await client.send("Hello")
            await expect_text(client, "Hello, Ann!")
        with pytest.raises(InvalidStatus) as refusal:
            await server.connect("/greet")
        assert refusal.value.response.status_code == 403


async def test_workers_share_a_room() -> None:
    async with script("workers") as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.connect("/ws")) for _ in range(8)]
        await clients[0].send("hello")
        for client in clients:
            await expect_text(client, r"process \d+: hello")


# The echo server.


async def test_echo_server_welcomes_echoes_and_tells_who_left() -> None:
    async with script("echo_server") as server:
        async with server.connect("/ws") as client:
            host, port = client.local_address
            assert await client.recv() == "Welcome!"
            await client.send("héllo")
            assert await client.recv() == "Echo: héllo"
        await server.expect_line(rf"^{re.escape(host)}:{port} left: closed by the client with 1000$")


async def test_echo_server_limits_connections_on_the_strict_route() -> None:
    async with script("echo_server") as server, AsyncExitStack() as stack:
        for path in ("/strict", "/strict", "/ws"):
            client = await stack.enter_async_context(server.connect(path))
            assert await client.recv() == "Welcome!"
        with pytest.raises(InvalidStatus) as refusal:
            await server.connect("/strict")
        assert refusal.value.response.status_code == 503


# Tokens: a stream that is stopped.


async def test_the_loop_of_a_manager_goes_on_when_members_leave() -> None:
    async with script("manager") as server, server.connect("/ws") as stays:
        async with server.connect("/ws"):
            await stays.send("one")
            assert await stays.recv() == "one"
        await stays.send("two")
        assert await stays.recv() == "two"


async def test_tokens_come_one_by_one_until_they_are_stopped() -> None:
    async with script("tokens") as server, server.connect("/tokens") as client:
        await client.send('{"type": "Ask", "prompt": "abc def"}')
        assert await next_event(client) == {"type": "Token", "text": "cba"}
        assert await next_event(client) == {"type": "Token", "text": "fed"}
        assert await next_event(client) == {"type": "Done", "stopped": False}
        await client.send(json.dumps({"type": "Ask", "prompt": "one " * 1000}))
        assert await next_event(client) == {"type": "Token", "text": "eno"}
        await client.send('{"type": "Stop"}')
        while (event := await next_event(client))["type"] == "Token":
            pass
        assert event == {"type": "Done", "stopped": True}
        await client.send('{"type": "Go"}')
        assert (await next_event(client))["message"] == "Expected one of `Ask`, `Stop`, got 'Go'"


# The typed chat: requests both ways.


async def test_typed_chat_answers_by_id_and_asks() -> None:
    async with script("typed_chat") as server, server.connect("/chat") as ada, server.connect("/chat") as bob:
        for client, name in ((ada, "Ada"), (bob, "Bob")):
            await client.send(json.dumps({"type": "Join", "name": name, "id": name}))
            assert await next_event(client) == {"type": "Question", "id": "$1", "text": "Will you be kind?"}
            await client.send('{"id": "$1", "yes": true}')
            assert await next_event(client) == {
                "type": "Said",
                "id": name,
                "name": "server",
                "text": f"welcome, {name}",
            }
        await ada.send('{"type": "Say", "text": "hello"}')
        for client in (ada, bob):
            assert await next_event(client) == {"type": "Said", "name": "Ada", "text": "hello"}
        await bob.send('{"type": "Say"}')
        assert (await next_event(bob))["code"] == "invalid"
        async with server.connect("/chat") as other:
            await other.send('{"type": "Join", "name": "Eve"}')
            await next_event(other)
            await other.send('{"id": "$1", "yes": false}')
            with pytest.raises(ConnectionClosedError) as closed:
                await other.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4003, "then not")


# The chat server.


async def next_event(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE):
        event: dict[str, Any] = json.loads(await client.recv())
    return event


async def test_chat_server_tells_everybody_who_comes_goes_and_writes() -> None:
    async with script("chat_server") as server, server.connect("/chat?name=Ann") as ann:
        assert await next_event(ann) == {"you": "Ann", "people": ["Ann"]}
        async with server.connect("/chat?name=Bob") as bob:
            assert await next_event(bob) == {"you": "Bob", "people": ["Ann", "Bob"]}
            assert await next_event(ann) == {"joined": "Bob"}
            await bob.send("hello")
            for client in (ann, bob):
                assert await next_event(client) == {"name": "Bob", "text": "hello"}
        assert await next_event(ann) == {"left": "Bob"}


async def test_chat_server_gives_each_member_a_name_of_its_own() -> None:
    async with script("chat_server") as server, AsyncExitStack() as stack:
        names: list[str] = []
        for query in ("?name=Ann", "?name=Ann", "?name=%20Ann%00%20", "", "?name=%20", "?name=" + 50 * "x"):
            client = await stack.enter_async_context(server.connect(f"/chat{query}"))
            names.append((await next_event(client))["you"])
    assert names == ["Ann", "Ann 2", "Ann 3", "Guest", "Guest 2", 30 * "x"]


async def test_chat_server_refuses_long_messages() -> None:
    async with script("chat_server") as server, server.connect("/chat?name=Ann") as ann:
        await next_event(ann)
        await ann.send("x" * 4097)
        with pytest.raises(ConnectionClosedError) as closing:
            await next_event(ann)
        assert closing.value.rcvd is not None
        assert closing.value.rcvd.code == 1009


async def test_chat_server_never_lets_a_slow_member_delay_the_others() -> None:
    async with script("chat_server") as server, server.connect("/chat?name=Ann") as ann:
        await next_event(ann)
        with deaf_client(server, "/chat?name=Slow"):
            assert await next_event(ann) == {"joined": "Slow"}
            rounds = 0
            # One message at a time: each comes back at once, whatever the slow member has not read.
            while (event := await talk(ann)) != {"left": "Slow"}:
                assert event["name"] == "Ann"
                rounds += 1
                assert rounds < 10_000, "the slow member is never dropped"


async def talk(client: ClientConnection) -> dict[str, Any]:
    await client.send("x" * 4000)
    return await next_event(client)


@contextmanager
def deaf_client(server: ExampleServer, path: str) -> Generator[None, None, None]:
    """Shake hands and never read a byte."""
    with socket.socket() as deaf:
        # Little room in the kernel, so that the server notices soon.
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        request = (
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{server.port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        )
        deaf.sendall("\r\n".join([*request, "", ""]).encode())
        yield


# The two servers.


async def test_two_servers_share_a_room() -> None:
    async with script("two_servers") as server:
        first = server.port
        await server.wait_until_listening()
        assert server.port != first
        async with connect(f"ws://127.0.0.1:{first}/ws", proxy=None) as one, server.connect("/ws") as two:
            for sender, receiver in ((one, two), (two, one)):
                await tell(sender, receiver)
        assert await server.stop() == 0


async def tell(sender: ClientConnection, receiver: ClientConnection) -> None:
    """Say hello until the other one hears it: that a room has members is news on its way to the broker."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await sender.send("hello")
            assert await sender.recv() == "hello"
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    assert await receiver.recv() == "hello"
                    return


# The pages, in a browser.


@pytest.mark.parametrize(("ci", "outcome"), [("true", "Failed"), ("", "Skipped")])
def test_missing_browser_fails_in_ci_and_skips_elsewhere(
    ci: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    monkeypatch.setenv("CI", ci)
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match="/nowhere/chromium") as missing:
        find_browser()
    assert type(missing.value).__name__ == outcome


async def join_chat(context: BrowserContext, server: ExampleServer, name: str) -> tuple[Page, list[str]]:
    page, errors = await open_tab(context, server.url("http", "/"))
    await page.get_by_label("Your name").fill(name)
    await page.get_by_role("button", name="Join").click()
    await see(page.get_by_role("status"), "Connected")
    return page, errors


async def say(page: Page, text: str) -> None:
    await page.get_by_label("Message", exact=True).fill(text)
    await page.get_by_role("button", name="Send").click()
    await expect(page.get_by_label("Message", exact=True)).to_have_value("")


async def see(locator: Locator, text: str) -> None:
    await expect(locator).to_contain_text(text, timeout=PATIENCE * 1000)


def last_line(page: Page) -> Locator:
    return page.get_by_role("log").get_by_role("listitem").last


async def test_chat_page_lets_two_tabs_talk(browser: Browser) -> None:
    async with script("chat_server") as server:
        context = await browser.new_context()
        ann, ann_errors = await join_chat(context, server, "Ann")
        bob, bob_errors = await join_chat(context, server, "Bob")
        await see(last_line(ann), "Bob joined")
        for page in (ann, bob):
            await see(page.get_by_role("banner"), "2 here: Ann, Bob")
        await say(ann, "hello Bob")
        await see(last_line(bob), "hello Bob")
        await see(last_line(bob), "Ann")
        await say(bob, "hello Ann")
        await see(last_line(ann), "hello Ann")
        await bob.close()
        await see(last_line(ann), "Bob left")
        await see(ann.get_by_role("banner"), "1 here: Ann")
        assert (ann_errors, bob_errors) == ([], [])


async def test_chat_page_shows_markup_as_text(browser: Browser) -> None:
    async with script("chat_server") as server:
        context = await browser.new_context()
        ann, ann_errors = await join_chat(context, server, "Ann")
        eve, eve_errors = await join_chat(context, server, "<script>hacked</script>")
        await see(last_line(ann), "<script>hacked</script> joined")
        await say(eve, MARKUP)
        for page in (ann, eve):
            await see(last_line(page), MARKUP)
            await see(last_line(page), "<script>hacked</script>")
            await expect(page.get_by_role("log").locator("img, script")).to_have_count(0)
            assert await page.evaluate("typeof hacked") == "undefined"
        assert (ann_errors, eve_errors) == ([], [])


async def test_chat_page_reconnects_and_keeps_what_was_being_written(browser: Browser) -> None:
    context = await browser.new_context()
    async with script("chat_server") as server:
        port = server.port
        page, errors = await join_chat(context, server, "Ann")
        await say(page, "before")
        await see(last_line(page), "before")
        await page.get_by_label("Message", exact=True).fill("after")
    await see(page.get_by_role("status"), "Not connected")
    await expect(page.get_by_role("button", name="Send")).to_be_disabled()
    await page.get_by_label("Message", exact=True).press("Enter")
    await expect(page.get_by_label("Message", exact=True)).to_have_value("after")
    async with script("chat_server", port):
        await see(page.get_by_role("status"), "Connected")
        await see(page.get_by_role("log"), "Connection lost")
        await see(last_line(page), "You are here as Ann")
        await page.get_by_role("button", name="Send").click()
        await see(last_line(page), "after")
    assert errors == []


async def test_chat_page_says_why_it_cannot_join(browser: Browser) -> None:
    context = await browser.new_context()
    async with script("chat_server") as server:
        port = server.port
        async with AsyncExitStack() as stack:
            for _ in range(100):
                await stack.enter_async_context(server.connect("/chat"))
            page, errors = await open_tab(context, server.url("http", "/"))
            await page.get_by_label("Your name").fill("Ann")
            await page.get_by_role("button", name="Join").click()
            await see(page.get_by_role("status"), "the chat is full")
        await see(page.get_by_role("status"), "Connected")
    await see(page.get_by_role("status"), "the server does not answer")
    async with script("chat_server", port):
        await see(page.get_by_role("status"), "Connected")
    assert errors == []


async def test_chat_page_keeps_a_text_until_the_server_has_taken_it(browser: Browser) -> None:
    context = await browser.new_context()
    await context.add_init_script(HOLD_BACK)
    async with script("chat_server") as server:
        page, errors = await join_chat(context, server, "Ann")
        box, button = page.get_by_label("Message", exact=True), page.get_by_role("button", name="Send")
        await page.evaluate("heldBack = []")
        await box.fill("hello")
        await button.click()
        await page.wait_for_function("heldBack.length === 1")
        await expect(box).to_have_value("hello")
        await expect(button).to_be_disabled()
        await box.press("Enter")
        await page.evaluate("handOver()")
        await see(last_line(page), "hello")
        await expect(box).to_have_value("")
        await say(page, "again")
        await see(last_line(page), "again")
        await expect(page.get_by_role("log").get_by_text("hello")).to_have_count(1)
        assert errors == []


async def test_chat_page_notices_a_server_that_no_longer_answers(browser: Browser) -> None:
    context = await browser.new_context()
    await context.add_init_script(HOLD_BACK)
    async with script("chat_server") as server:
        page, errors = await join_chat(context, server, "Ann")
        await page.evaluate("skipped = 16_000")
        # It asks, and is answered.
        await page.wait_for_function("asked === 1 && heard > 1")
        await see(page.get_by_role("status"), "Connected")
        await page.evaluate("heldBack = []; skipped += 16_000")
        await page.wait_for_function("heldBack.length === 1")
        await page.evaluate("skipped += 11_000")
        await see(page.get_by_role("log"), "The server does not answer any more")
        await page.evaluate("handOver()")
        await see(page.get_by_role("status"), "Connected")
        assert errors == []


async def test_chat_page_remembers_the_name_over_a_reload(browser: Browser) -> None:
    async with script("chat_server") as server:
        page, errors = await join_chat(await browser.new_context(), server, "Ann")
        await page.reload()
        await see(page.get_by_role("status"), "Connected")
        await see(last_line(page), "You are here as Ann")
        assert errors == []


async def test_flexible_handler_serves_page_and_socket_on_one_path(browser: Browser) -> None:
    async with script("flexible_handler") as server:
        async with server.connect("/") as client:
            for number in (1, 2):
                await client.send("hello")
                assert await client.recv() == f"Message {number}: hello"
        page, errors = await open_tab(await browser.new_context(), server.url("http", "/"))
        await see(page.get_by_role("main"), f"came over HTTP from {server.url('http', '/')}")
        await see(page.get_by_role("main"), f"talks to {server.url('ws', '/')}")
        await see(page.get_by_role("status"), "Connected")
        await say(page, MARKUP)
        await see(last_line(page), f"Message 1: {MARKUP}")
        await say(page, "second")
        await see(last_line(page), "Message 2: second")
        await expect(page.get_by_role("log").locator("img, script")).to_have_count(0)
        assert errors == []


async def test_flexible_page_reconnects(browser: Browser) -> None:
    context = await browser.new_context()
    async with script("flexible_handler") as server:
        port = server.port
        page, errors = await open_tab(context, server.url("http", "/"))
        await see(page.get_by_role("status"), "Connected")
        await say(page, "before")
        await see(last_line(page), "Message 1: before")
    await see(page.get_by_role("status"), "Not connected")
    async with script("flexible_handler", port):
        await see(page.get_by_role("status"), "Connected")
        await say(page, "after")
        await see(last_line(page), "Message 1: after")
    assert errors == []


@pytest.mark.parametrize("name", ["chat_server", "flexible_handler"])
async def test_page_waits_longer_after_each_failure(name: str, browser: Browser) -> None:
    context = await browser.new_context()
    await context.add_init_script(RECORD_DELAYS)
    async with script(name) as server:
        if name == "chat_server":
            page, errors = await join_chat(context, server, "Ann")
        else:
            page, errors = await open_tab(context, server.url("http", "/"))
        await see(page.get_by_role("status"), "Connected")
    await page.wait_for_function("delays.length === 8")
    for failures, delay in enumerate(await page.evaluate("delays")):
        longest = min(30_000, 500 * 2**failures)
        assert longest / 2 <= delay <= longest
    await see(page.get_by_role("status"), "Not connected")
    assert errors == []
