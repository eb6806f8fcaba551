"""Calls of `on_message`: what they give, and those in tasks of their own, several at a time or bounded in time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from typing import Any, Final, TypeAlias

from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data, checked_kind
from wsdeco.connection.limits import CANCEL_AGAIN, LimitedConnection
from wsdeco.definition.plan import Plan

__all__ = ["ADVICE", "Calls", "send_stream"]

Hook: TypeAlias = tuple[Plan, Callable[[Data], Any]]

ADVICE: Final = "annotate on_message with what it gives, such as `-> dict`, or write json.dumps(...) first"
"""What to write if a reply has no form on the wire."""

_ROUNDING: Final = 1e-6
"""Seconds that a sum of times may lack."""


async def send_stream(channel: Channel, replies: AsyncIterable[object]) -> None:
    """Send each value of a stream as it comes, and end the stream if the connection ends before it."""
    try:
        async for reply in replies:
            await channel.send(checked_kind(reply, advice=ADVICE))
    finally:
        if isinstance(replies, AsyncGenerator):
            await replies.aclose()


class Calls:
    """The calls under way. One deadline serves all of them.

    Args:
        connection: Whose calls they are.
        begun: Called at the beginning of each call, in its task, with the name of the hook.
        ended: Called at its end, in its task, with what it has raised.
        over: Called when that is known, with the same and whether no other call is under way; returns whether the hook
            is to be looked up anew. That a call was cancelled for its time is nothing that it has raised.
        late: Told of a call that has had its time, and again and again if it goes on.
    """

    __slots__ = ("_begun", "_channel", "_connection", "_due", "_ended", "_late", "_over", "_overdue")

    def __init__(
        self,
        connection: LimitedConnection,
        begun: Callable[[str], None],
        ended: Callable[[BaseException | None], None],
        over: Callable[[BaseException | None, bool], bool],
        late: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._connection = connection
        self._channel = connection.channel
        self._begun = begun
        self._ended = ended
        self._over = over
        self._late = late
        self._due: dict[asyncio.Task[None], float] = {}
        self._overdue: set[asyncio.Task[None]] = set()

    async def run(self, plan: Plan, on_message: Callable[[Data], Any], look_up: Callable[[], Hook]) -> Hook:
        """Take the messages that are there, and return when no call is under way and no further message has come.

        So an idle connection keeps nothing of this.

        Args:
            plan: Which of them are for the hook.
            on_message: The hook.
            look_up: Returns both anew, when they have become others.

        Returns:
            The plan and the hook at last.
        """
        channel = self._channel
        try:
            while True:
                data = channel.take() if len(self._due) < channel.config.parallel else None
                if data is None and not self._due:
                    return plan, on_message
                if data is None:
                    is_redefined = await self._wait()
                    if self._settle() or is_redefined:
                        plan, on_message = look_up()
                elif plan.takes_text if isinstance(data, str) else plan.takes_binary:
                    self._give_time(channel.loop.create_task(self._call(plan, on_message, data)))
                else:
                    channel.undelivered += 1
        except (Exception, asyncio.CancelledError):
            # Not GeneratorExit: then the loop is thrown away, and nothing may be awaited.
            await self._cancel()
            raise

    async def _wait(self) -> bool:
        """Wait for the end of a call, or for a message that there is room for; return whether the hook has changed."""
        waits: list[asyncio.Future[Any]] = [*self._due]
        event: asyncio.Future[bool | None] | None = None
        if len(self._due) < self._channel.config.parallel and self._channel.reason is None:
            event = self._channel.next_event()
            waits.append(event)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return event is not None and event.done() and bool(event.result())

    async def _call(self, plan: Plan, on_message: Callable[[Data], Any], data: Data) -> None:
        self._begun("on_message")
        try:
            if plan.streams:
                await send_stream(self._channel, on_message(data))
            else:
                reply = await on_message(data)
                if reply is not None:
                    await self._channel.send(checked_kind(reply, advice=ADVICE))
        except (Exception, asyncio.CancelledError) as exc:
            self._ended(exc)
            raise
        self._ended(None)

    def _give_time(self, call: asyncio.Task[None]) -> None:
        seconds = self._channel.config.message_timeout
        if seconds is None:
            self._due[call] = math.inf
        else:
            self._due[call] = self._channel.clock.time() + seconds
            self._connection.check_calls_in(seconds, self._check)

    def _check(self) -> None:
        now = self._channel.clock.time()
        for call, due in list(self._due.items()):
            if due - now < _ROUNDING:
                self._due[call] = now + CANCEL_AGAIN
                self._overdue.add(call)
                self._late(call)
        self._connection.check_calls_in(min(self._due.values()) - now, self._check)

    def _settle(self) -> bool:
        is_redefined = False
        for call in [call for call in self._due if call.done()]:
            del self._due[call]
            if not self._due:
                self._connection.calls_over()
            cancelled = None if call in self._overdue else asyncio.CancelledError()
            self._overdue.discard(call)
            is_redefined |= self._over(cancelled if call.cancelled() else call.exception(), not self._due)
        return is_redefined

    async def _cancel(self) -> None:
        """Cancel the calls, and again each time that a deadline cancels the wait for them."""
        while self._due:
            for call in self._due:
                call.cancel()
            try:
                await asyncio.wait(self._due)
            except asyncio.CancelledError:
                continue
            for call in self._due:
                if not call.cancelled():
                    # Takes the exception, which asyncio would log otherwise: the connection has ended for another
                    # reason.
                    call.exception()
            self._due.clear()
