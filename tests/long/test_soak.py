"""Thousands of real connections to a real server process, as `python -m pytest -m soak` runs them.

The servers are as `App.run` makes them. Where the limit of descriptors (`ulimit -Hn`) does not give room for as many
clients as a test wants, there are as many as it gives. `pytest -s` shows what was measured.
"""

import json
import os
import random
import signal
import socket
import statistics
import time
from collections import Counter
from typing import Final

import pytest

from tests.support import raw
from tests.support.crowd import Client, Crowd, Serve, crowd_of, room_for_clients, wait_for
from tests.support.raw import Opcode

MIB: Final = 1 << 20
CROWD: Final = 10_000
MINUTES: Final = float(os.environ.get("WSDECO_SOAK_MINUTES", "3"))

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def measured(what: str, **figures: object) -> None:
    """Say what was measured."""
    print(f"\n{what}:", ", ".join(f"{name} {figure}" for name, figure in figures.items()))  # noqa: T201 - for `-s`


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


# R6: nothing stays.


def end_with_close(client: Client) -> None:
    client.answers = False
    client.send(raw.close(4001))


def end_with_fin(client: Client) -> None:
    client.sock.shutdown(socket.SHUT_WR)


def end_in_a_frame(client: Client) -> None:
    client.send(raw.text("message")[:-1])
    client.reset()


def end_in_a_hook(client: Client) -> None:
    client.send(raw.text("wait"))
    client.sock.shutdown(socket.SHUT_WR)


def end_with_a_failing_hook(client: Client) -> None:
    client.send(raw.text("fail"))


WAYS: Final = (
    end_with_close,
    end_with_fin,
    Client.reset,
    end_in_a_frame,
    end_in_a_hook,
    end_with_a_failing_hook,
)
RESETTING: Final = (Client.reset, end_in_a_frame)


def test_nothing_stays_of_connections_that_die_in_six_ways(serve: Serve) -> None:
    number = room_for_clients(CROWD)
    server = serve(max_connections=CROWD, disconnect_grace=0)
    before = server.at_rest()
    resident: list[float] = []
    blocks: list[int] = []
    with crowd_of(server.port) as crowd:
        for _ in range(10):
            assert len(crowd.enter(number)) == number
            assert server.census()["slots"] == number
            for index, client in enumerate(list(crowd.clients)):
                way = WAYS[index % len(WAYS)]
                way(client)
                if way in RESETTING:
                    crowd.drop(client)
            assert crowd.watch(lambda: len(crowd.ended) == number)
            wait_for(lambda: server.census()["slots"] == 0)
            crowd.forget_ended()
            assert server.at_rest() == before
            resident.append(server.resident / MIB)
            blocks.append(server.census()["blocks"])
    census = server.census()
    left = sum(census["reasons"].values())
    measured(
        "R6",
        connections=census["connected"],
        left=left,
        MiB_after_each_round=[round(each, 1) for each in resident],
        blocks_after_each_round=blocks,
    )
    assert census["connected"] == left == 10 * number
    # A single object that stayed of each connection would be ten thousand blocks more a round.
    assert max(blocks[2:]) - blocks[1] < number // 10
    # The allocator takes some rounds to find its size.
    assert max(resident[6:]) - max(resident[2:6]) < 4.0


def test_what_stays_on_uvicorn_of_connections_that_die(serve: Serve) -> None:
    number = room_for_clients(CROWD // 4)
    server = serve(server="uvicorn")
    resident: list[float] = []
    with crowd_of(server.port) as crowd:
        before = server.resident
        for _ in range(5):
            assert len(crowd.enter(number)) == number
            resident.append((server.resident - before) / number / 1024)
            for index, client in enumerate(list(crowd.clients)):
                # A hook that waits is never ended there.
                way = (end_with_close, end_with_fin, Client.reset, end_in_a_frame, end_with_a_failing_hook)[index % 5]
                way(client)
                if way in RESETTING:
                    crowd.drop(client)
            assert crowd.watch(lambda: len(crowd.ended) == number)
            crowd.forget_ended()
            resident.append((server.resident - before) / number / 1024)
    measured("R6 uvicorn", connections=5 * number, KiB_each_inside_and_after=[round(each, 1) for each in resident])


# R7: the limit.


def test_exactly_as_many_enter_as_the_limit_says(serve: Serve) -> None:
    number = room_for_clients(CROWD)
    server = serve(max_connections=number)
    with crowd_of(server.port) as crowd:
        inside = crowd.enter(number)
        assert len(inside) == number
        assert crowd.enter(2 * number) == []
        assert crowd.watch(lambda: len(crowd.ended) == 2 * number)
        assert Counter(client.status for client in crowd.ended) == {503: 2 * number}
        # Without a census so far: it looks at each object of the server, which would be measured below.
        waits: list[float] = []
        for client in random.sample(inside, 20):
            client.reset()
            crowd.drop(client)
            freed_at = time.monotonic()
            while not crowd.enter(1):
                pass
            waits.append(time.monotonic() - freed_at)
        assert server.census()["slots"] == number
        measured("R7", inside=number, refused=2 * number, freed_slot_after_ms=round(max(waits) * 1000, 1))
        assert max(waits) < 0.1


# Limits for people.


def test_one_address_knocks_twenty_thousand_times_and_others_come_and_go(serve: Serve) -> None:
    each, rounds, limit = 500, 40, 100
    others = [f"127.0.{2 + number // 250}.{1 + number % 250}" for number in range(200)]
    server = serve(max_connections_per_client=limit, ping_interval=None)
    with crowd_of(server.port) as crowd:
        inside: list[Client] = []
        for number in range(rounds):
            inside += crowd.enter(each, host="127.0.1.1")
            assert len(inside) == limit
            for host in others[5 * number : 5 * number + 5]:
                # Each of them is let in as often as it may, and not more often.
                assert len(crowd.enter(limit // 5, host=host)) == limit // 5
        assert crowd.watch(lambda: len(crowd.ended) == rounds * each - limit)
        assert Counter(client.status for client in crowd.ended) == {429: rounds * each - limit}
        assert len(crowd.enter(limit, host=others[-1])) == limit - limit // 5
        taken = server.census()["slots"]
        for client in inside[:10]:
            client.reset()
            crowd.drop(client)
        wait_for(lambda: server.census()["slots"] == taken - 10)
        assert len(crowd.enter(20, host="127.0.1.1")) == 10
        measured("per client", handshakes=rounds * each, inside=limit, of_others=server.census()["slots"] - limit)
    wait_for(lambda: server.census()["slots"] == 0)


def test_what_all_limits_cost_an_idle_crowd(serve: Serve) -> None:
    number = room_for_clients(CROWD)
    seconds = 20.0
    times = {"max_connection_duration": 3600, "idle_timeout": 600, "first_message_timeout": 600, "message_timeout": 2}
    rates = {"message_rate": "20/s", "burst": 40, "byte_rate": "1MiB/s"}
    limits: dict[str, object] = {"max_connections_per_client": number, "max_connections": number, **times, **rates}
    memory: dict[str, float] = {}
    shares: dict[str, float] = {}
    for name, options in (("none", {}), ("rates", rates), ("all", limits)):
        server = serve(ping_interval=None, **options)
        before = server.resident
        with crowd_of(server.port) as crowd:
            inside = crowd.enter(number)
            assert len(inside) == number
            for start in range(0, number, 100):
                # All at once would have all hooks run at once, and show what these take.
                some = inside[start : start + 100]
                for client in some:
                    client.send(raw.text("x"))
                assert crowd.watch(lambda: all(client.messages for client in some))  # noqa: B023
            crowd.watch(seconds=4)
            memory[name] = round((server.resident - before) / number / 1024, 2)
            taken = server.seconds
            crowd.watch(seconds=seconds)
            shares[name] = (server.seconds - taken) / seconds
            assert crowd.ended == []
        server.kill()
    measured("all limits", KiB_each=memory, processor={name: f"{share:.2%}" for name, share in shares.items()})
    assert max(shares.values()) < 0.01
    assert memory["rates"] - memory["none"] < 0.3
    assert memory["all"] - memory["none"] < 0.3


# R8: handshakes that do not come.


def test_silent_and_dribbling_handshakes_end_in_time(serve: Serve) -> None:
    number = room_for_clients(CROWD)
    server = serve()
    request = raw.handshake("/ws")
    with crowd_of(server.port) as crowd, crowd_of(server.port) as good:
        regular = good.enter(1)[0]
        served: list[float] = []
        silent: list[Client] = []
        dribbling: list[Client] = []

        def be_served() -> None:
            begin = time.monotonic()
            answered = regular.messages
            regular.send(raw.text("still there?"))
            assert good.watch(lambda: regular.messages > answered)
            newcomer = good.enter(1)[0]
            newcomer.reset()
            good.drop(newcomer)
            served.append(time.monotonic() - begin)

        for index in range(number):
            (dribbling if index % 2 else silent).append(crowd.dial())
            if index % 200 == 0:
                be_served()
        for sent in range(30):
            for client in dribbling:
                if client.ended_at is None:
                    client.send(request[sent : sent + 1])
            be_served()
            crowd.watch(lambda: len(crowd.ended) == number, 0.5)
        assert len(crowd.ended) == number
        ends = {
            name: [(client.ended_at or 0) - client.opened_at for client in group]
            for name, group in (("silent", silent), ("dribbling", dribbling))
        }
        measured(
            "R8",
            **{name: f"{min(group):.2f} to {max(group):.2f} s" for name, group in ends.items()},
            good_client_waited_at_most_ms=round(max(served) * 1000),
        )
        for group in ends.values():
            assert min(group) > 9.5
            assert max(group) < 10.5
        assert {client.status for client in silent} == {None}
        assert max(served) < 1.0


# R9: timers.


def test_timers_of_a_crowd_are_on_time(serve: Serve) -> None:
    number = room_for_clients(CROWD)
    idle_timeout = 20
    server = serve(idle_timeout=idle_timeout, ping_interval=None)
    with crowd_of(server.port) as crowd:
        crowd.enter(number)
        assert crowd.watch(lambda: len(crowd.ended) == number)
        assert Counter(client.code for client in crowd.ended) == {1001: number}
    lives = server.census()["lives"]
    measured("R9", idle_timeout=idle_timeout, lives=[round(each, 3) for each in lives])
    assert lives[0] >= idle_timeout - 0.01
    assert lives[1] < idle_timeout + 0.25


def test_waiting_timers_take_no_time(serve: Serve) -> None:
    number = room_for_clients(CROWD)
    seconds = 20.0
    shares: dict[str, float] = {}
    for name, ping_interval in (("limits", None), ("limits and answered pings", 20.0)):
        server = serve(idle_timeout=600, max_connection_duration=3600, ping_interval=ping_interval)
        with crowd_of(server.port) as crowd:
            assert len(crowd.enter(number)) == number
            crowd.watch(seconds=1)
            before = server.seconds
            crowd.watch(seconds=seconds)
            shares[name] = (server.seconds - before) / seconds
            assert len(crowd.ended) == 0
        server.kill()
    measured("R9", **{name: f"{share:.2%} of a processor" for name, share in shares.items()})
    assert shares["limits"] < 0.01


# R10: peers that are silent.


def test_a_vanished_peer_is_noticed_in_time(serve: Serve) -> None:
    number = room_for_clients(1000)
    server = serve(ping_interval=2, ping_timeout=1)
    with crowd_of(server.port) as crowd:
        for client in crowd.enter(number):
            client.answers = False
        assert crowd.watch(lambda: len(crowd.ended) == number)
    census = server.census()
    measured("R10", interval=2, timeout=1, noticed_after=[round(each, 2) for each in census["lives"]])
    assert set(census["reasons"]) == {"connection lost without a close frame"}
    assert census["lives"][1] < 2 + 1 + 0.5


def test_nobody_dies_while_the_loop_stands_still(serve: Serve) -> None:
    number = room_for_clients(1000)
    server = serve(ping_interval=0.5, ping_timeout=0.5)
    with crowd_of(server.port) as crowd:
        inside = crowd.enter(number)
        crowd.watch(seconds=1)
        for _ in range(3):
            inside[0].send(raw.text("stall 1.5"))
            crowd.watch(seconds=3)
        assert crowd.ended == []
        for client in inside:
            client.send(raw.text("alive"))
        assert crowd.watch(lambda: all(client.messages == 1 for client in inside))
    measured("R10", stalls="3 of three timeouts each", clients=number, died=0)


# R11: the end.


def enter_for_the_end(crowd: Crowd, number: int) -> dict[str, list[Client]]:
    """Let clients in that are as different as can be at the moment of the signal."""
    few = number // 40
    groups = {
        "unread": crowd.enter(few, receive_buffer=64 * 1024),
        "stuck": crowd.enter(few),
        "stubborn": crowd.enter(few),
        "deaf": crowd.enter(few),
        "idle": crowd.enter(number - 5 * few),
    }
    groups["handshake"] = [crowd.dial() for _ in range(few)]
    for client in groups["handshake"]:
        client.send(raw.handshake("/ws")[:40])
    for client in groups["unread"]:
        crowd.stop_reading(client)
        client.send(raw.text(f"flood {MIB}"))
    for client in groups["stuck"]:
        client.send(raw.text("wait"))
    for client in groups["stubborn"]:
        client.send(raw.text("wait-stubbornly"))
    for client in groups["deaf"]:
        client.answers = False
    return groups


def test_a_crowd_is_let_go_in_time(serve: Serve) -> None:
    number = room_for_clients(CROWD)
    close_timeout = 5.0
    server = serve(close_timeout=close_timeout, max_outbox=2 * MIB)
    with crowd_of(server.port) as crowd:
        groups = enter_for_the_end(crowd, number)
        handled = sum(len(groups[name]) for name in ("unread", "stuck", "stubborn"))
        wait_for(lambda: server.census()["handled"] == handled)
        begin = time.monotonic()
        server.signal()
        # Closed behind the signal, not at once: the server has to come round to it.
        time.sleep(0.5)
        with pytest.raises(ConnectionRefusedError):
            crowd.dial()
        for client in groups["unread"]:
            crowd.read_again(client)
            client.send(raw.text("a client that speaks meanwhile"))
        crowd.watch(lambda: not server.running())
        took = time.monotonic() - begin
        status, lines = server.end()
        assert crowd.watch(lambda: len(crowd.ended) == number)
        codes = {name: Counter(client.code for client in group) for name, group in groups.items()}
        ends = {name: max((client.ended_at or 0) - begin for client in group) for name, group in groups.items()}
        whole = sum(client.received == MIB for client in groups["unread"])
    census = json.loads(lines[-1])
    left = sum(census["reasons"].values())
    measured(
        "R11",
        clients=number,
        exit_after=f"{took:.2f} s of {close_timeout:g} s + 1 s + 1 s",
        status=status,
        codes={name: dict(counted) for name, counted in codes.items()},
        ends={name: round(end, 2) for name, end in ends.items()},
        unread_whole=f"{whole} of {len(groups['unread'])}",
        on_disconnect_before_lifespan_shutdown=f"{left} of {census['connected']}",
    )
    assert status == 0
    assert whole == len(groups["unread"])
    assert codes.pop("handshake") == {None: number // 40}
    assert all(set(counted) == {1012} for counted in codes.values())
    assert left == census["connected"] == number - number // 40
    # The stubborn ones are cancelled a second time, a second later.
    assert took < close_timeout + 1.0 + 1.0


def test_a_crowd_on_uvicorn_is_not_let_go(serve: Serve) -> None:
    number = room_for_clients(CROWD // 5)
    server = serve(server="uvicorn")
    with crowd_of(server.port) as crowd:
        groups = enter_for_the_end(crowd, number)
        crowd.watch(seconds=2)
        begin = time.monotonic()
        server.signal()
        time.sleep(0.5)
        for client in groups["unread"]:
            crowd.read_again(client)
            client.send(raw.text("a client that speaks meanwhile"))
        crowd.watch(lambda: not server.running(), 30)
        took = time.monotonic() - begin
        codes = {name: dict(Counter(client.code for client in group)) for name, group in groups.items()}
        whole = sum(client.received >= MIB for client in groups["unread"])
        measured(
            "R11 uvicorn",
            clients=number,
            exit_after=f"{took:.1f} s" if not server.running() else "never",
            codes=codes,
            unread_whole=f"{whole} of {len(groups['unread'])}",
        )


def test_a_second_signal_does_not_wait_for_a_crowd(serve: Serve) -> None:
    number = room_for_clients(CROWD)
    server = serve()
    with crowd_of(server.port) as crowd:
        for client in crowd.enter(number):
            client.answers = False
        for client in crowd.clients[::10]:
            client.send(raw.text("wait"))
        wait_for(lambda: server.census()["handled"] == len(crowd.clients[::10]))
        server.signal()
        crowd.watch(seconds=1)
        assert server.running()
        begin = time.monotonic()
        server.signal(signal.SIGINT)
        status, _ = server.end()
        took = time.monotonic() - begin
    measured("R11", second_signal_ends_after=f"{took:.2f} s", status=status)
    assert status == 1
    assert took < 1.0


# One room.


def say_broadcast(client: Client, number: int, size: int, interval: float = 0) -> None:
    client.send(raw.text(f"broadcast {number} {size} {interval}"))


def test_every_member_of_a_large_room_gets_every_broadcast(serve: Serve) -> None:
    number = room_for_clients(CROWD)
    server = serve()
    with crowd_of(server.port) as crowd:
        inside = crowd.enter(number, "/ws?crowd")
        assert server.census()["members"] == number
        begin, before = time.monotonic(), server.seconds
        say_broadcast(inside[0], 100, 64, 0.01)
        assert crowd.watch(lambda: all(client.messages == 100 for client in inside), 300)
        took = time.monotonic() - begin
        census = server.census()
        measured(
            "room",
            members=number,
            delivered=100 * number,
            seconds=round(took, 1),
            server_us_per_delivery=round((server.seconds - before) / 100 / number * 1e6, 2),
            ended=len(crowd.ended),
        )
        assert census["taken"] == [number] * 100
        assert crowd.ended == []


def test_idle_connections_as_many_as_descriptors_allow(serve: Serve) -> None:
    number = room_for_clients(100_000)
    server = serve()
    before = server.resident
    with crowd_of(server.port) as crowd:
        inside = crowd.enter(number, "/ws?crowd")
        assert len(inside) == number
        memory = (server.resident - before) / number / 1024
        say_broadcast(inside[0], 1, 64)
        assert crowd.watch(lambda: all(client.messages == 1 for client in inside))
        census = server.census()
        measured("idle", connections=number, KiB_each=round(memory, 2), reached=census["taken"], ended=len(crowd.ended))
        assert census["taken"] == [number]
        assert crowd.ended == []


# R14: a member that does not read.


def latencies_of(crowd: Crowd, readers: list[Client]) -> list[float]:
    """Broadcast more than the system buffers for one that does not read; return the latencies in milliseconds."""
    number = 320
    before = {client.number: client.messages for client in readers}
    latencies: list[float] = []
    crowd.on_message = lambda _client, payload: latencies.append((time.monotonic_ns() - int(payload[:24])) / 1e6)
    say_broadcast(readers[0], number, 16 * 1024, 0.1)
    assert crowd.watch(lambda: all(client.messages - before[client.number] == number for client in readers), 300)
    return latencies


def test_a_stalled_member_delays_nobody(serve: Serve) -> None:
    server = serve(max_outbox=256 * 1024)
    rounds = 2
    with crowd_of(server.port) as crowd:
        readers = crowd.enter(room_for_clients(999), "/ws?crowd")
        without: list[float] = []
        beside: list[float] = []
        for _ in range(rounds):
            without += latencies_of(crowd, readers)
            (stalled,) = crowd.enter(1, "/ws?crowd", receive_buffer=4096)
            crowd.stop_reading(stalled)
            beside += latencies_of(crowd, readers)
            assert server.census()["members"] == len(readers)
            crowd.read_again(stalled)
            assert crowd.watch(lambda: stalled.ended_at is not None)  # noqa: B023
        reasons: dict[str, int] = server.census()["reasons"]
        tails = percentile(without, 0.99), percentile(beside, 0.99)
        measured("R14", p99_ms=[round(tail, 1) for tail in tails], ratio=f"{tails[1] / tails[0]:.3f}", closed=reasons)
        assert reasons == {"closed by the server with 1013 (slow consumer)": rounds}
        assert tails[1] < 1.5 * tails[0]


# A fast producer.


def test_a_hook_that_takes_its_time_gets_every_message(serve: Serve) -> None:
    number = 100_000
    server = serve(ping_interval=None)
    before = server.resident
    with crowd_of(server.port) as crowd:
        (client,) = crowd.enter(1)
        message = raw.text("work 0.001 " + "x" * 100)
        begin = time.monotonic()
        highest = 0
        for _ in range(100):
            client.sock.sendall(message * (number // 100))
            highest = max(highest, server.resident)
        client.send(raw.text("done"))
        assert crowd.watch(lambda: client.messages == 1, 600)
        took = time.monotonic() - begin
    census = server.census()
    measured(
        "fast producer",
        messages=census["handled"] - 1,
        seconds=round(took),
        memory_MiB=round((highest - before) / MIB, 1),
    )
    assert census["handled"] == number + 1
    assert highest - before < 4 * MIB


# R15: all of it for a while.

HOSTILE: Final = (
    b"\x81\x05hello",
    b"\xc1\x80\0\0\0\0",
    b"\x83\x80\0\0\0\0",
    raw.frame(Opcode.TEXT, b"\xff"),
    raw.frame(Opcode.CLOSE, b"\x03"),
    raw.frame(Opcode.PING, b"x" * 126),
    b"\x82\xff" + b"\xff" * 8,
)


class Talker:
    """A client that numbers its messages, and knows which is to come back next.

    Attributes:
        lost: Messages that did not come back, came twice, or in another order.
    """

    def __init__(self) -> None:
        self.next_out: Counter[int] = Counter()
        self.next_in: Counter[int] = Counter()
        self.lost = 0

    def speak(self, client: Client) -> None:
        client.send(raw.text(f"number:{self.next_out[client.number]}"))
        self.next_out[client.number] += 1

    def hear(self, client: Client, payload: bytes) -> None:
        self.lost += payload != f"number:{self.next_in[client.number]}".encode()
        self.next_in[client.number] += 1

    def part(self, client: Client) -> None:
        del self.next_out[client.number]
        del self.next_in[client.number]


def test_a_crowd_that_comes_and_goes_beside_hostile_ones(serve: Serve) -> None:
    number = room_for_clients(1000)
    churn_per_second = max(1, number // 10 // 60)
    source = random.Random(15)  # noqa: S311 - the same in every run
    server = serve(max_connections=2 * number)
    talker = Talker()
    samples: list[tuple[float, int]] = []
    sent = hostile = churned = 0
    with crowd_of(server.port) as crowd:
        crowd.on_message = talker.hear
        talking = crowd.enter(number)
        begin = time.monotonic()
        while (now := time.monotonic() - begin) < MINUTES * 60:
            for client in source.sample(talking, number // 4):
                talker.speak(client)
                sent += 1
            assert crowd.watch(lambda: talker.next_in.total() == talker.next_out.total())
            for client in source.sample(talking, churn_per_second):
                source.choice((end_with_close, end_with_fin, Client.reset))(client)
                talking.remove(client)
                if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) != bytes(8):
                    crowd.drop(client)
                talker.part(client)
                churned += 1
            talking += crowd.enter(churn_per_second)
            for client in crowd.enter(number // 100):
                client.send(source.choice(HOSTILE) + source.randbytes(source.randrange(50)))
                client.sock.shutdown(socket.SHUT_WR)
                hostile += 1
            crowd.watch(lambda: len(crowd.clients) - len(crowd.ended) == number, 1.0)
            crowd.forget_ended()
            samples.append((now, server.resident))
        assert talker.lost == 0
        assert {client.ended_at for client in talking} == {None}
        wait_for(lambda: server.census()["slots"] == number)
    settled = [(at, size) for at, size in samples if at > MINUTES * 20]
    slope = statistics.linear_regression(*zip(*settled, strict=True)).slope * 3600 / MIB
    growth = (settled[-1][1] - settled[0][1]) / MIB
    measured(
        "R15",
        minutes=MINUTES,
        messages=sent,
        lost_or_out_of_order=talker.lost,
        churned=churned,
        hostile=hostile,
        MiB_per_hour=round(slope, 1),
        MiB_in_the_last_two_thirds=round(growth, 2),
    )
    assert "Traceback" not in server.log
    assert growth < 2.0
