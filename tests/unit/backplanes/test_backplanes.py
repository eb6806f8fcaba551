"""Backplanes: by URL, over real brokers, and what becomes of messages that cannot be published."""

import asyncio
import contextlib
import logging
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import trustme
from nats.aio.client import Client as NatsClient
from redis.asyncio import Redis as RedisClient

from tests.support.brokers import BrokerProcess, nats_server, redis_server
from tests.support.stacks import MEMORY, Server, soon, until
from tests.support.wire import Logged
from wsdeco import Address, App, Backplane, BackplaneError, Room, Sink
from wsdeco.backplanes.broker import BrokerBackplane
from wsdeco.backplanes.envelope import subject_of
from wsdeco.backplanes.nats import NatsBroker
from wsdeco.backplanes.supervision import Supervision
from wsdeco.backplanes.urls import open_backplane
from wsdeco.testing import MemoryBroker, check_backplane

QUICK: Final = Supervision(first_delay=0.01, max_delay=0.05, connect_timeout=2, answer_timeout=2)

LOBBY: Final = "room:lobby"

SECRET: Final = "pa/ss@wo:rd"  # noqa: S105 - nobody's
ESCAPED: Final = "pa%2Fss%40wo%3Ard"


class Party:
    """A backplane, and what it gets."""

    def __init__(self, url: str, supervision: Supervision = QUICK) -> None:
        self.backplane: BrokerBackplane = open_backplane(url, supervision)
        self.got: list[str | bytes] = []
        self.calls = 0

    @property
    def state(self) -> str:
        return self.backplane.state

    @property
    def error(self) -> str:
        return self.backplane.error or ""

    def start(self) -> None:
        self.backplane.start(lambda key, data: self.got.append(data))

    async def connected(self) -> None:
        await until(lambda: self.state == "connected")

    async def disconnected(self) -> None:
        await until(lambda: self.state == "reconnecting")

    def publish_nowait(self, data: str | bytes, key: str = LOBBY) -> bool:
        self.calls += 1
        return self.backplane.publish_nowait(key, data)

    async def publish(self, data: str | bytes) -> None:
        assert self.publish_nowait(data)
        await self.backplane.drained()

    async def settled(self) -> None:
        """Wait until it is known of every message what has become of it."""
        counters = self.backplane.counters
        await until(lambda: counters.published + counters.lost + counters.unconfirmed == self.calls)

    async def reaches(self, other: "Party") -> None:
        """Wait until what this one publishes reaches the other, which is in the lobby."""
        while "probe" not in other.got:
            self.publish_nowait("probe")
            await asyncio.sleep(0.005)
        await self.publish("met")
        await until(lambda: "met" in other.got)
        await self.settled()
        self.got.clear()
        other.got.clear()


@asynccontextmanager
async def parties(*urls: str, supervision: Supervision = QUICK) -> AsyncGenerator[list[Party]]:
    """Run backplanes that are in the lobby."""
    running = [Party(url, supervision) for url in urls]
    try:
        for party in running:
            party.backplane.subscribe(LOBBY)
            party.start()
        yield running
    finally:
        for party in running:
            await party.backplane.close()


async def test_a_backplane_over_a_broker_is_one(broker: BrokerProcess) -> None:
    await check_backplane(lambda: open_backplane(broker.url), too_large=9_000_000)


@pytest.mark.parametrize("max_payload", [None, 1_000_000])
async def test_a_backplane_in_memory_is_one(max_payload: int | None) -> None:
    await check_backplane(MemoryBroker(max_payload).backplane, too_large=max_payload and max_payload + 1)


# The URL.


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("kafka://user:secret@host", "begins with nats://, tls://, redis://, rediss://, unix://, not with 'kafka'"),
        ("secret", "not with something else: write 'nats://127.0.0.1:4222' or 'redis://127.0.0.1:6379'"),
        ("secret @:x", "not with something else"),
        ("nats://user:se/cret@host", "has no usable host and port: write nats://host:port, with special characters"),
        ("nats://:0", "has no usable host and port"),
        ("nats://", "has no usable host and port"),
        ("redis://user:secret@host:99999", "has no usable host and port"),
        ("redis://[::1", "has no usable host and port"),
        ("nats://host?prefx=secret", "has the option 'prefx', which there is not: it takes 'prefix' alone"),
        ("nats://host?prefix=a.b", r"up to 64 letters, digits, '_' and '-', not 'a\.b'"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        App(backplane=url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("nats://user:secret@host:4222", "nats://host:4222"),
        ("nats://secret@host", "nats://host"),
        ("tls://user:secret@a:1,b:2,nats://c:3", "tls://a:1,tls://b:2,nats://c:3"),
        ("redis://:secret@host:6379/2?prefix=chat", "redis://host:6379/2"),
        ("rediss://user:secret@host", "rediss://host"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock"),
    ],
)
def test_a_backplane_is_called_by_its_url_without_secrets(url: str, name: str) -> None:
    backplane = App(backplane=url).backplane
    assert repr(backplane) == f"<Backplane {name} closed>"


@pytest.mark.parametrize(("scheme", "library"), [("nats", "nats-py"), ("redis", "redis-py")])
def test_a_missing_extra_says_what_to_install(scheme: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == scheme]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"wsdeco.backplanes.{scheme}", raising=False)
    with pytest.raises(BackplaneError, match=rf"needs {library}.*: pip install 'wsdeco\[{scheme}\]'"):
        App(backplane=f"{scheme}://host:1")


def test_what_is_no_backplane_is_refused() -> None:
    wrong: Any = object()
    with pytest.raises(TypeError, match=r"object has no start, subscribe, unsubscribe, publish_nowait, drained, close"):
        App(backplane=wrong)
    with pytest.raises(ValueError, match="must be 'count' or 'raise', not 'ignore'"):
        App(publish_errors="ignore")  # type: ignore[arg-type]


async def test_applications_with_prefixes_of_their_own_do_not_meet(broker: BrokerProcess) -> None:
    urls = [f"{broker.url}?prefix=one", f"{broker.url}?prefix=one", f"{broker.url}?prefix=two"]
    async with parties(*urls) as (here, there, other):
        await other.connected()
        await here.reaches(there)
        await here.publish("x")
        await until(lambda: there.got == ["x"])
        assert other.got == []


# Apps.


def chat(app: App) -> Room:
    room = app.room("lobby")

    @app.handler("/ws")
    class Member:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            room.join(sink)

        async def on_message(self, text: str) -> None:
            await room.broadcast(text)

    return room


@asynccontextmanager
async def serving(*apps: App) -> AsyncGenerator[list[Server]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(MEMORY.serve(app)) for app in apps]


def backplane_of(app: App) -> Backplane:
    assert app.backplane is not None
    return app.backplane


async def connected(app: App) -> None:
    await until(lambda: backplane_of(app).state == "connected")


async def check_apps(here: App, there: App) -> None:
    """Check that members of both apps get every message once."""
    rooms = [chat(here), chat(there)]
    async with serving(here, there) as servers, servers[0].connect("/ws") as one, servers[1].connect("/ws") as two:
        for app in (here, there):
            await connected(app)
        for room in rooms:
            room.broadcast_nowait("met")
        for client in (one, two):
            assert [await client.receive() for _ in range(2)] == ["met", "met"]
        await one.send("hello")
        await two.send("there")
        assert sorted([str(await one.receive()), str(await one.receive())]) == ["hello", "there"]
        assert sorted([str(await two.receive()), str(await two.receive())]) == ["hello", "there"]
        assert await here.broadcast("/ws", "route") == 1
        assert [await client.receive() for client in (one, two)] == ["route", "route"]
    assert [backplane_of(app).state for app in (here, there)] == ["closed", "closed"]


async def test_apps_share_a_broker_in_memory() -> None:
    broker = MemoryBroker()
    await check_apps(App(backplane=broker.backplane()), App(backplane=broker.backplane()))


async def test_the_environment_names_a_backplane(nats: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    monkeypatch.setenv("WSDECO_BACKPLANE", nats.url)
    assert app.backplane is None
    async with serving(app):
        await until(lambda: backplane_of(app).state == "connected")
    assert repr(app.backplane) == f"<Backplane {nats.url} closed>"
    monkeypatch.delenv("WSDECO_BACKPLANE")
    async with serving(app):
        await until(lambda: backplane_of(app).state == "connected")


async def test_an_app_takes_the_backplane_that_the_environment_names_later(
    nats: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = App()
    monkeypatch.setenv("WSDECO_BACKPLANE", nats.url)
    async with parties(nats.url) as (party,):
        await party.connected()
        while not party.got:
            assert await ws.room("lobby").broadcast("x") == 0
            await asyncio.sleep(0.005)
        await ws.shut_down()
    assert set(party.got) == {"x"}


@pytest.mark.parametrize(
    ("value", "error"), [("", None), ("kafka://x", "WSDECO_BACKPLANE names no backplane to use: ")]
)
async def test_a_wrong_environment_is_said_at_the_start(
    value: str, error: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App()
    monkeypatch.setenv("WSDECO_BACKPLANE", value)
    with contextlib.nullcontext() if error is None else pytest.raises(BackplaneError, match=error):
        assert await app.room("lobby").broadcast("x") == 0
    assert app.backplane is None


def test_an_app_is_served_in_one_loop_after_another(broker: BrokerProcess) -> None:
    app = App(backplane=broker.url)
    chat(app)

    async def serve(text: str) -> None:
        async with parties(broker.url) as (party,), serving(app) as (server,), server.connect("/ws") as client:
            while "probe" not in party.got:
                app.room("lobby").broadcast_nowait("probe")
                await asyncio.sleep(0.005)
            await until(lambda: backplane_of(app).counters.published > 0)
            await party.connected()
            while True:
                party.publish_nowait(text)
                if await client.receive() == text:
                    break
        assert asyncio.all_tasks() == {asyncio.current_task()}

    for text in ("first", "second", "third"):
        asyncio.run(serve(text))


async def test_a_script_without_an_event_loop_publishes(broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSDECO_BACKPLANE", broker.url)
    script = App()
    async with parties(broker.url) as (party,):
        await party.connected()
        while "hello" not in party.got:
            # Until it is known that the room is subscribed.
            await asyncio.to_thread(script.room("lobby").broadcast_nowait, "hello")
        await asyncio.to_thread(script.room("lobby").broadcast_nowait, b"again")
        await until(lambda: b"again" in party.got)
        assert script.backplane is not None
        assert (script.backplane.state, script.backplane.counters.lost) == ("closed", 0)
        # As in an event loop, which may follow.
        assert await script.room("lobby").broadcast("awaited") == 0
        await script.shut_down()
        await until(lambda: "awaited" in party.got)


@pytest.mark.parametrize("kind", ["nats", "redis"])
def test_a_script_is_told_that_there_is_no_broker(kind: str) -> None:
    room = App(backplane=f"{kind}://127.0.0.1:1", publish_errors="raise").room("lobby")
    with pytest.raises(BackplaneError, match="no other process: the broker is not connected"):
        room.broadcast_nowait("x")
    app = App(backplane=f"{kind}://127.0.0.1:1")
    app.room("lobby").broadcast_nowait("x")
    assert app.backplane is not None
    assert app.backplane.counters.lost == 1


def test_a_script_that_ends_too_early_is_warned(redis: BrokerProcess, caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)

    async def script() -> None:
        await App(backplane=redis.url).room("lobby").broadcast("x")

    asyncio.run(script())
    # What processes tell each other waits as well.
    warning = "messages were sent, which are lost: `await app.shut_down()`"
    assert any(warning in line for line in logged.lines())


async def test_errors_of_publishing_reach_the_caller_if_wanted() -> None:
    app = App(backplane="nats://127.0.0.1:1", publish_errors="raise")
    async with serving(app):
        await until(lambda: backplane_of(app).state == "reconnecting")
        # What the rooms of the processes tell each other counts as well.
        before = backplane_of(app).counters.lost
        with pytest.raises(BackplaneError, match="reached 0 members in this process and no other process"):
            await app.room("lobby").broadcast("x")
        assert backplane_of(app).counters.lost == before + 1


# Credentials, permissions and limits.


def credentials_of(kind: str) -> list[str]:
    return ["--user", "me", "--pass", SECRET] if kind == "nats" else ["--requirepass", SECRET]


SERVERS: Final[dict[str, Callable[..., contextlib.AbstractContextManager[BrokerProcess]]]] = {
    "nats": nats_server,
    "redis": redis_server,
}


@pytest.fixture(params=["nats", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def guarded(kind: str) -> Iterator[BrokerProcess]:
    """A broker that wants a password."""
    with SERVERS[kind](*credentials_of(kind)) as server:
        yield server


async def test_credentials(guarded: BrokerProcess, caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    user = "me" if guarded.url.startswith("nats") else ""
    async with parties(guarded.url, guarded.with_credentials(f"{user}:wrong-secret")) as refused:
        for party in refused:
            await party.disconnected()
            assert party.error == "cannot connect: the server refuses the credentials of the URL"
        await asyncio.sleep(0.3)
    assert (
        logged.lines(logging.INFO)
        == [f"ERROR backplane {guarded.url}: {refused[0].error}; it is tried again and again"] * 2
    )
    async with parties(*[guarded.with_credentials(f"{user}:{ESCAPED}")] * 2) as (here, there):
        await here.reaches(there)
    assert not [record for record in caplog.records if "wrong-secret" in record.getMessage()]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and record.name != "wsdeco"]


async def test_a_token_is_a_user_without_a_password() -> None:
    with nats_server("--auth", "t/k") as server:
        async with parties(*[server.with_credentials("t%2Fk")] * 2) as (here, there):
            await here.reaches(there)


@pytest.fixture
def nats_config(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "nats.conf"
        path.write_text(text)
        return path

    return write


async def test_a_message_over_the_limit_of_nats_is_refused(nats_config: Callable[[str], Path]) -> None:
    with nats_server("--config", str(nats_config("max_payload: 2000"))) as server:
        await check_backplane(lambda: open_backplane(server.url), too_large=1983)
        app = App(backplane=server.url)
        chat(app)
        async with serving(app) as (running,), running.connect("/ws") as client:
            await connected(app)
            with pytest.raises(ValueError, match=r"of 1983 bytes is more than .* takes, which is 1982 bytes"):
                await app.room("lobby").broadcast("x" * 1983)
            assert await app.room("lobby").broadcast("x" * 1982) == 1
            assert await client.receive() == "x" * 1982


FORBIDDEN: Final = subject_of("wsdeco", "room:forbidden")


@pytest.fixture
def strict(kind: str, nats_config: Callable[[str], Path]) -> Iterator[str]:
    """The URL of a broker that lets nobody publish or subscribe to one room."""
    if kind == "nats":
        deny = f'{{ deny: ["{FORBIDDEN}"] }}'
        user = f"{{ user: me, password: pw, permissions: {{ publish: {deny}, subscribe: {deny} }} }}"
        options = ["--config", str(nats_config(f"authorization: {{ users: [{user}] }}"))]
    else:
        options = ["--user", "me", "on", ">pw", "+@all", "~*", f"&{subject_of('wsdeco', LOBBY)}"]
    with SERVERS[kind](*options) as server:
        yield server.with_credentials("me:pw")


async def test_what_may_not_be_published_is_lost(strict: str) -> None:
    async with parties(strict, strict) as (here, there):
        await here.reaches(there)
        before = here.backplane.counters.published
        for key in (LOBBY, "room:forbidden", LOBBY, "room:forbidden"):
            assert here.publish_nowait(key, key)
        await until(lambda: there.got == [LOBBY, LOBBY])
        await here.settled()
        assert here.backplane.counters.published == before + 2
        assert here.state == "connected"


async def test_a_room_that_may_not_be_subscribed_is_no_silent_one(strict: str) -> None:
    async with parties(strict) as (party,):
        await party.connected()
        party.backplane.subscribe("room:forbidden")
        await party.disconnected()
        assert "permissions" in party.error.lower()
        party.backplane.unsubscribe("room:forbidden")
        await party.connected()


# What comes from others.


async def publish_raw(url: str, subject: str, *payloads: bytes) -> None:
    if url.startswith("nats"):
        client = NatsClient()
        await client.connect(url)
        for payload in payloads:
            await client.publish(subject, payload)
        await client.flush()
        await client.close()
        return
    clients: Any = RedisClient
    connection = clients.from_url(url)
    for payload in payloads:
        await connection.publish(subject, payload)
    await connection.aclose()


async def test_what_others_publish_there_is_dropped_and_counted(broker: BrokerProcess) -> None:
    async with parties(broker.url, broker.url) as (here, there):
        await here.reaches(there)
        await publish_raw(broker.url, subject_of("wsdeco", LOBBY), b"", b"hello", b"\x80\x04\x95" + b"." * 100)
        await here.publish("x")
        await until(lambda: there.got == ["x"])
        assert there.backplane.counters.malformed == 3
        assert there.backplane.counters.missed == 0


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("", id="empty"),
        pytest.param("a\r\nb\u20ac", id="text"),
        pytest.param(b"\r\n$1\r\nMSG x 1 0\r\n", id="like a command"),
        pytest.param(bytes(range(256)) * 1000, id="long"),
    ],
)
async def test_a_message_arrives_as_it_was_published(broker: BrokerProcess, data: str | bytes) -> None:
    async with parties(broker.url, broker.url) as (here, there):
        await here.reaches(there)
        await here.publish(data)
        await until(lambda: there.got != [])
        assert there.got == [data]


# Brokers that fail.


async def test_no_broker_at_all(kind: str) -> None:
    async with parties(f"{kind}://127.0.0.1:1") as (party,):
        await party.disconnected()
        assert party.error.startswith("cannot connect: ")
        assert "127.0.0.1" in party.error


async def test_something_else_than_a_broker(kind: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, parties(f"{kind}://127.0.0.1:{port}") as (party,):
        await party.disconnected()
        assert party.error.startswith("cannot connect: ")


async def test_a_broker_that_is_killed_and_started_again(
    own_broker: BrokerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    logged = Logged(caplog)
    async with parties(own_broker.url, own_broker.url) as (here, there):
        await here.reaches(there)
        own_broker.kill()
        await here.disconnected()
        await there.disconnected()
        before = here.backplane.counters.lost
        assert not here.publish_nowait("lost")
        assert here.backplane.counters.lost == before + 1
        own_broker.start()
        await here.connected()
        await there.connected()
        await here.reaches(there)
        for number in range(100):
            await here.publish(str(number))
        await until(lambda: len(there.got) >= 100)
        assert there.got == [str(number) for number in range(100)]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    lines = logged.lines(logging.INFO)
    assert sum("the connection was lost" in line for line in lines) == 2
    assert sum(": connected again; " in line for line in lines) == 2
    assert len(lines) <= 10


async def lose_nothing_in_silence(own_broker: BrokerProcess, publishes: int, outage: float) -> None:
    """Check that all that is published around an outage is delivered or counted, once and in order."""
    async with parties(own_broker.url, own_broker.url) as (here, there):
        await here.reaches(there)
        lost, missed = here.backplane.counters.lost, there.backplane.counters.missed
        loop = asyncio.get_running_loop()
        refused = 0

        async def fail() -> None:
            own_broker.kill()
            await here.disconnected()
            await there.disconnected()
            await asyncio.sleep(outage)
            await asyncio.to_thread(own_broker.start)

        async def publish(numbers: range) -> None:
            nonlocal refused
            for number in numbers:
                refused += not here.publish_nowait(str(number))
                await here.backplane.drained()
                if number % 50 == 0:
                    await asyncio.sleep(0)

        await publish(range(publishes // 4))
        failing = loop.create_task(fail())
        await publish(range(publishes // 4, publishes // 2))
        await until(lambda: here.state == "reconnecting")
        await publish(range(publishes // 2, 3 * publishes // 4))
        await soon(failing)
        back = loop.time()
        await here.connected()
        await there.connected()
        assert loop.time() - back < 5
        await publish(range(3 * publishes // 4, publishes))
        ends = 0
        while "end" not in there.got:
            refused += not here.publish_nowait("end")
            ends += 1
            await asyncio.sleep(0.01)
        await here.settled()
        mine, theirs = here.backplane.counters, there.backplane.counters
        await until(lambda: len(there.got) + theirs.missed - missed == publishes + ends)
        numbers = [int(data) for data in there.got if data != "end"]
        assert numbers == sorted(set(numbers))
        assert 0 < refused <= mine.lost - lost <= theirs.missed - missed


async def test_of_an_outage_everything_is_delivered_or_counted(own_broker: BrokerProcess) -> None:
    await lose_nothing_in_silence(own_broker, 4_000, 0.1)


@pytest.mark.soak
async def test_of_a_long_outage_everything_is_delivered_or_counted(own_broker: BrokerProcess) -> None:
    await lose_nothing_in_silence(own_broker, 100_000, 2.0)


@pytest.mark.soak
async def test_after_five_seconds_everything_is_as_before(own_broker: BrokerProcess) -> None:
    await lose_nothing_in_silence(own_broker, 1_000, 5.0)


async def test_a_broker_that_hangs_is_noticed_and_holds_nobody_up(own_broker: BrokerProcess) -> None:
    hasty = Supervision(
        first_delay=0.01,
        max_delay=0.05,
        connect_timeout=0.5,
        answer_timeout=0.5,
        ping_interval=0.1,
        max_queue=2_000_000,
    )
    async with parties(own_broker.url, own_broker.url, supervision=hasty) as (here, there):
        await here.reaches(there)
        before = here.backplane.counters.published
        with own_broker.stopped():
            taken = sum(here.publish_nowait(b"x" * 500_000) for _ in range(40))
            assert 1 <= taken <= 4
            await soon(here.backplane.drained())
            await here.disconnected()
            await there.disconnected()
            await here.settled()
            assert here.backplane.counters.published == before
        await here.connected()
        await there.connected()
        await here.reaches(there)


async def test_a_broker_that_hangs_does_not_hold_up_the_end(kind: str, nats_config: Callable[[str], Path]) -> None:
    # More than the buffers of the sockets take.
    options = ["--config", str(nats_config("max_payload: 32MB\nmax_pending: 64MB"))] if kind == "nats" else []
    size = 30_000_000 if kind == "nats" else 8_000_000
    with SERVERS[kind](*options) as server:
        async with parties(server.url, supervision=Supervision(close_timeout=0.05)) as (party,):
            await party.connected()
            with server.stopped():
                party.publish_nowait(b"x" * size)
                await asyncio.sleep(0.05)
                await soon(party.backplane.close())
            assert party.backplane.counters.unconfirmed == 1


async def test_an_idle_connection_stays(broker: BrokerProcess) -> None:
    async with parties(broker.url, broker.url, supervision=Supervision(ping_interval=0.01)) as (here, there):
        there.backplane.unsubscribe(LOBBY)
        await there.connected()
        await asyncio.sleep(0.2)
        there.backplane.subscribe(LOBBY)
        await here.reaches(there)
        await asyncio.sleep(0.2)
        await here.publish("still here")
        await until(lambda: there.got == ["still here"])
        assert (here.state, here.error) == ("connected", "")


# TLS.


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Files of a certificate for 127.0.0.1 that this process trusts, and of its key."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")


async def check_encrypted(url: str) -> None:
    async with parties(url, url) as (here, there):
        await here.reaches(there)
        await here.publish("in secret")
        await until(lambda: there.got == ["in secret"])


async def test_nats_with_tls(certificate: tuple[str, str]) -> None:
    with nats_server("--tls", "--tlscert", certificate[0], "--tlskey", certificate[1]) as server:
        await check_encrypted(server.url.replace("nats:", "tls:"))


@pytest.mark.parametrize("credentials", ["", "token@", "user:password@"])
async def test_nats_that_does_not_encrypt_is_told_nothing(credentials: str) -> None:
    told: list[bytes] = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"max_payload":1048576}\r\nPONG\r\n')
        told.append(await reader.read())
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        backplane = open_backplane(f"tls://{credentials}127.0.0.1:{port}")
        backplane.start(lambda key, data: None)
        await until(lambda: backplane.error is not None)
        assert backplane.error == (
            "cannot connect: the server does not encrypt, as tls:// wants it: let it require TLS, or write nats://"
        )
        await backplane.close()
        await until(lambda: bool(told))
    assert all(b"token" not in each and b"password" not in each for each in told)


async def test_redis_with_tls(redis: BrokerProcess, certificate: tuple[str, str]) -> None:
    # The server of the wheel has no TLS, so there is something in front of it that has.
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    relays: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", redis.port)
        for pair in ((reader, onward_writer), (onward_reader, writer)):
            relays.add(asyncio.create_task(copy(*pair)))

    front = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    async with front:
        await check_encrypted(f"rediss://127.0.0.1:{front.sockets[0].getsockname()[1]}")
        await soon(asyncio.gather(*relays))


async def test_a_link_to_nats_asks_once_whether_what_it_was_given_has_come(nats: BrokerProcess) -> None:
    def receive(*message: object) -> None:
        pytest.fail("nobody has subscribed")

    def note(messages: int, taken: bool) -> None:
        answers.append((messages, taken))

    answers: list[tuple[int, bool]] = []
    link = await NatsBroker("nats", [urlsplit(nats.url)]).connect(receive)
    link.publish([("subject", b"x"), ("subject", b"y")], note)
    link.confirm()
    link.confirm()
    await soon(link.ping())
    assert sum(messages for messages, _ in answers) == 2
    await link.close()
    link.publish([("subject", b"x")], note)
    assert sum(messages for messages, _ in answers) == 2


async def test_a_link_gets_nothing_of_what_it_has_left(broker: BrokerProcess) -> None:
    got: list[tuple[str, bytes]] = []

    def receive(subject: str, data: bytes) -> None:
        got.append((subject, data))

    connect = open_backplane(broker.url).broker.connect
    listening, publishing = await connect(receive), await connect(receive)
    reading = [asyncio.ensure_future(link.lost()) for link in (listening, publishing)]
    await listening.subscribe(["stays", "left"])
    await listening.unsubscribe(["left"])
    await soon(listening.ping())
    publishing.publish([("left", b"x"), ("stays", b"y")], lambda messages, taken: None)
    await until(lambda: got != [])
    assert got == [("stays", b"y")]
    for task in reading:
        task.cancel()
    for link in (listening, publishing):
        await link.close()
    await asyncio.gather(*reading, return_exceptions=True)
