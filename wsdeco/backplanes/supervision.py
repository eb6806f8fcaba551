"""How the connection of a backplane is kept up: its times and its bounds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from wsdeco.clock import Clock

__all__ = ["Supervision"]


@dataclass(frozen=True, slots=True)
class Supervision:
    """How a connection is kept up. All times in seconds.

    Attributes:
        connect_timeout: For a connection to be made.
        ping_interval: Between two looks whether the broker is there; less if it, or something on the way, has ended
            a connection that was quiet for less.
        answer_timeout: For the broker to confirm something of what it was given, or to answer a ping.
        confirm_delay: After a message, for others to follow it before the broker is asked to confirm all of them.
        linger: That a room goes on being subscribed when nobody is left in it, as the next one may be about to come.
        close_timeout: At the end, for what is still in the queue.
        first_delay: Before the second attempt to connect; doubled before each further one.
        max_delay: The longest delay. A connection that has lasted as long sets it back to the first.
        max_queue: Bytes in the queue above which nothing more is taken.
        high_water: Bytes in the queue above which `drained` waits.
        clock: What the delays before attempts and `linger` are measured by; by default the event loop.
        jitter: A random number between 0 and 1: that part of the second half of a delay is waited for.
        shortest_quiet: A connection that ends is taken for one that was ended for being quiet, if it was quiet longer.
        frequent_ping: The shortest interval of pings that is learnt from that.
        batch_bytes: Bytes that the broker is given before it has confirmed any of them.
        batch_messages: The same, in messages.
        max_lingering: Rooms without members that are still subscribed; more of them are unsubscribed before `linger`.
        numbered_rooms: Rooms for which the number of the last message is kept; a forgotten one begins at 1 again.
        known_publishers: Publishers whose last number is kept for each room.
    """

    connect_timeout: float = 5.0
    ping_interval: float = 10.0
    answer_timeout: float = 5.0
    confirm_delay: float = 0.05
    linger: float = 1.0
    close_timeout: float = 2.0
    first_delay: float = 0.1
    max_delay: float = 2.0
    max_queue: int = 8 * 1024 * 1024
    high_water: int = 1024 * 1024
    clock: Clock | None = None
    jitter: Callable[[], float] = random.random
    shortest_quiet: float = 1.0
    frequent_ping: float = 0.5
    batch_bytes: int = 256 * 1024
    batch_messages: int = 1024
    max_lingering: int = 4096
    numbered_rooms: int = 16 * 1024
    known_publishers: int = 1024
