"""Faults that take a process: clients that are stopped, and a server that has no descriptors left."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support import raw
from tests.support.checkout import CHECKOUT
from tests.support.crowd import PATIENCE, Client, Serve, SoakServer, crowd_of, wait_for
from tests.support.programs import Program

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows cannot stop a process")

# Clients that are stopped.

CLIENT: Final = """
import sys
from tests.support import raw
from tests.support.crowd import crowd_of

with crowd_of(int(sys.argv[1])) as crowd:
    (client,) = crowd.enter(1, "/ws?crowd")
    client.send(raw.text("hello"))
    crowd.watch(lambda: client.messages == 1)
    if sys.argv[2] == "in a frame":
        # Pongs are taken for the rest of it.
        client.send(raw.text("x" * 10_000)[:-9_000])
    print("ready", flush=True)
    crowd.watch(lambda: client.ended_at is not None)
    print(client.messages, flush=True)
"""


@contextmanager
def client_process(server: SoakServer, moment: str) -> Generator[subprocess.Popen[str]]:
    """Run a client in a process of its own; it is connected, and has had an answer."""
    command = [sys.executable, "-c", CLIENT, str(server.port), moment]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def messages_at_the_end(process: subprocess.Popen[str]) -> int:
    output, _ = process.communicate(timeout=PATIENCE)
    return int(output)


@pytest.mark.parametrize("moment", ["idle", "in a frame"])
def test_a_stopped_client_is_noticed_by_the_keepalive(moment: str, serve: Serve) -> None:
    server = serve(ping_interval=0.5, ping_timeout=0.5)
    with client_process(server, moment) as process:
        # It answers pings, or it would be gone.
        time.sleep(1.5)
        assert server.census()["slots"] == 1
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: server.census()["slots"] == 0)
        assert server.census()["reasons"] == {"connection lost without a close frame": 1}
        process.send_signal(signal.SIGCONT)
        assert messages_at_the_end(process) == 1
    assert "Traceback" not in server.log


def test_a_client_that_is_stopped_for_a_moment_misses_nothing(serve: Serve) -> None:
    server = serve(ping_interval=5, ping_timeout=5)
    with client_process(server, "idle") as process, crowd_of(server.port) as crowd:
        process.send_signal(signal.SIGSTOP)
        (speaker,) = crowd.enter(1)
        speaker.send(raw.text("broadcast 50 1000 0.001"))
        wait_for(lambda: server.census()["broadcasts"] == 50)
        process.send_signal(signal.SIGCONT)
        server.signal()
        assert messages_at_the_end(process) == 1 + 50


def test_a_client_that_is_stopped_in_a_broadcast_delays_nobody(serve: Serve) -> None:
    server = serve(ping_interval=None, max_outbox=256 * 1024, close_timeout=0.5)
    with client_process(server, "idle") as process, crowd_of(server.port) as crowd:
        members = crowd.enter(5, "/ws?crowd")
        process.send_signal(signal.SIGSTOP)
        members[0].send(raw.text("broadcast 500 65536 0.001"))
        assert crowd.watch(lambda: all(client.messages == 500 for client in members))
        # What the system buffers, and its own bound; not one byte more.
        wait_for(lambda: server.census()["slots"] == 5)
        assert server.census()["reasons"] == {"closed by the server with 1013 (slow consumer)": 1}
        process.send_signal(signal.SIGCONT)
        assert messages_at_the_end(process) < 500
        assert crowd.ended == []


# Descriptors.


def is_served(client: Client) -> bool:
    return client.status == 101


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
def test_a_server_without_descriptors_goes_on_when_there_are_some(loop: str, serve: Serve) -> None:
    server = serve(loop=loop, descriptors=64)
    before = server.at_rest()
    with crowd_of(server.port) as crowd:
        for _ in range(2):
            clients = [crowd.dial() for _ in range(100)]
            for client in clients:
                client.send(raw.handshake("/ws"))
            crowd.watch(lambda: sum(map(is_served, clients)) > 60, 1.5)  # noqa: B023
            served = [client for client in clients if is_served(client)]
            assert 20 < len(served) < 64
            # Those inside are served as if nothing were the matter.
            for client in served:
                client.send(raw.text("still there?"))
            assert crowd.watch(lambda: all(client.messages == 1 for client in served))  # noqa: B023
            for client in clients:
                if client.ended_at is None:
                    client.reset()
                    crowd.drop(client)
            began = time.monotonic()
            while not crowd.enter(1):
                assert time.monotonic() - began < PATIENCE
            crowd.drop_all()
            wait_for(lambda: server.census()["slots"] == 0)
    assert server.at_rest() == before
    assert server.running()
    # What the operator reads of it: that it began, with the limit, and that it was over for a while.
    lines = [line for line in server.log.splitlines() if not line.startswith("INFO:")]
    assert ["RLIMIT_NOFILE of this process is 64" in line for line in lines] in ([True], [True, False])
    assert all("there are file descriptors again" in line for line in lines[1:])


IN_LOOP: Final = """
import asyncio, logging, resource, sys
from wsdeco import ws

logging.basicConfig()
if sys.argv[1] == "uvloop":
    import uvloop
    factory = uvloop.new_event_loop
else:
    factory = asyncio.new_event_loop


@ws.handler("/ws")
class Echo:
    async def on_message(self, text):
        return text


async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    await ws.serve(port=0)

asyncio.Runner(loop_factory=factory).run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_in_the_loop_of_a_program_says_once_that_it_has_none(loop: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(IN_LOOP, "utf-8")
    program = Program(tmp_path, "app.py", loop)
    try:
        port = int(program.expect(r"Serving http://127.0.0.1:(\d+)")[1])
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        said = program.expect_words("Too many open files")
        for client in clients:
            client.close()
        said += program.expect_words("there are file descriptors again")
        program.send_signal(signal.SIGTERM)
        errors = program.end().errors
    finally:
        program.discard()
    assert len(said) == 2
    assert "Traceback" not in errors


# A server that is stopped.


@contextmanager
def speaking(client: Client) -> Generator[None]:
    """Say something five times a second, and read the answers."""
    over = threading.Event()

    def speak() -> None:
        while not over.wait(0.2):
            client.send(raw.text("lively"))

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "limits", [{"idle_timeout": 1.0}, {"ping_interval": 0.5, "ping_timeout": 0.5}], ids=["idle", "keepalive"]
)
def test_a_stopped_server_blames_nobody_who_spoke(limits: dict[str, float], serve: Serve) -> None:
    server = serve(**limits)
    with crowd_of(server.port) as crowd:
        (client,) = crowd.enter(1)
        with speaking(client):
            crowd.watch(lambda: client.messages > 0)
            server.signal(signal.SIGSTOP)
            time.sleep(2.0)
            heard = client.messages
            server.signal(signal.SIGCONT)
            assert crowd.watch(lambda: client.messages > heard + 10)
        assert (client.ended_at, client.code) == (None, None)


def test_a_stopped_server_reads_the_answer_to_its_close(serve: Serve) -> None:
    server = serve(close_timeout=1.0)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as peer:
        peer.sendall(raw.handshake("/ws") + raw.text("close"))
        received = b""
        while not received.endswith(b"\x88\x02\x0f\xa0"):
            received += peer.recv(1024)
        server.signal(signal.SIGSTOP)
        peer.sendall(raw.close(4000))
        time.sleep(2.0)
        server.signal(signal.SIGCONT)
        # A deadline that is judged first resets the connection, since the answer is unread.
        assert peer.recv(1024) == b""
