"""The half of the ASGI channel that calls the server's `receive`.

One of two tasks does at a time:

- The hooks' task, while no hook runs (`idle`). A message and its reply then take one task, and no second inbox.
- The task in which the server has called the app (`read`) at all other times. So the peer's end is seen while a hook
  runs, and the bound of the inbox holds.

Reading is handed over in two places, and `_turn`, which the server's task waits for meanwhile, says who has it:

- `_lend`: the hooks wait for a message, and the server's task has just given them one.
- `_take_back`: a hook waits for something (`_look` sees it two turns of the loop later), the channel has ended, or
  `receive` has brought something else than a message.

A hook that waits for something may do so each time. So the server's task then keeps the reading for `_EVENTS_AT_ONCE`
messages.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple, cast

from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope

from wsdeco.channels.base import Channel, wake
from wsdeco.channels.data import Data, exceeds
from wsdeco.channels.events import disconnect_reason, nothing_more
from wsdeco.channels.extension import end_of, extension_of
from wsdeco.clock import Clock
from wsdeco.config import ConnectionConfig
from wsdeco.reasons import Close, CloseCode, DisconnectReason, Unknown

__all__ = ["ReceivingChannel"]

_EVENTS_AT_ONCE: Final = 32
"""Events after which the server's task gives the loop to others: the `receive` of a server need not wait."""


class _Pause(NamedTuple):
    begun: asyncio.Future[None]
    over: asyncio.Future[None]


class ReceivingChannel(Channel):
    """A channel that is read with `receive`."""

    __slots__ = (
        "_are_hooks_idle",
        "_are_hooks_receiving",
        "_broken",
        "_called_off",
        "_drained",
        "_extension",
        "_hooks",
        "_is_changed",
        "_is_looking",
        "_pause",
        "_reader",
        "_receive",
        "_received",
        "_receiving",
        "_turn",
    )

    def __init__(self, scope: Scope, receive: Receive, config: ConnectionConfig, clock: Clock | None) -> None:
        super().__init__(HTTPConnection(scope), config, clock)
        self._receive = receive
        self._extension = extension_of(scope)
        self._broken = False
        self._drained: asyncio.Future[None] | None = None
        self._pause: _Pause | None = None
        # Of the server's task.
        self._reader: asyncio.Task[Any] | None = None
        self._receiving = False
        self._turn: asyncio.Future[Message | None] | None = None
        # Of the hooks' task.
        self._hooks: asyncio.Task[Any] | None = None
        self._are_hooks_idle = False
        self._are_hooks_receiving = False
        self._called_off = False
        self._is_changed = False
        self._is_looking = False
        self._received = 0

    async def connect(self) -> bool:
        """Take `websocket.connect` from the server, unless the upgrade was accepted before."""
        if self.accepted:
            return True
        message = await self._receive()
        return bool(message["type"] == "websocket.connect")

    # The server's task.

    async def read(self) -> None:  # noqa: C901, PLR0912 - the fast path of hooks that wait: a frame costs
        """Read until `websocket.disconnect`, whenever the hooks do not."""
        self._reader = asyncio.current_task()
        if self._extension is not None:
            self._extension.tell_departure(self.peer_left)
        left = 1
        given: Message | None = None
        while True:
            if given is not None:
                message, given = given, None
            else:
                if self._pause is not None:
                    await self._pause.over
                self._receiving = True
                try:
                    message = await self._receive()
                except asyncio.CancelledError:
                    if not self._pauses():
                        raise
                    continue
                finally:
                    self._receiving = False
            if message["type"] != "websocket.receive":
                await self._take_end(message)
                return
            text: str | None = message.get("text")
            self.deliver(text if text is not None else message["bytes"])
            left -= 1
            if self._reading_paused and not self._broken and not self._ends_with_server():
                await self._resumed()
            elif left <= 0:
                left = _EVENTS_AT_ONCE
                if self._are_hooks_idle and self.reason is None:
                    given = await self._lend()
                else:
                    await asyncio.sleep(0)

    def _pauses(self) -> bool:
        """Return whether the cancellation that has arrived was but for a pause, which begins then."""
        if self._pause is None or self._pause.begun.done():
            return False
        self._pause.begun.set_result(None)
        return not cast("asyncio.Task[Any]", self._reader).uncancel()

    async def _lend(self) -> Message | None:
        """Let the hooks read, until they give it back; return what they have received and is no message."""
        turn: asyncio.Future[Message | None] = self.loop.create_future()
        self._turn = turn
        try:
            return await turn
        finally:
            self._turn = None
            # It may hold an exception, whose traceback holds this frame.
            del turn

    async def _pause_receiving(self) -> asyncio.Future[None]:
        """Wait until nobody is in `receive`; nobody will be before what is returned is done."""
        pause = self._pause = _Pause(self.loop.create_future(), self.loop.create_future())
        if self._receiving:
            cast("asyncio.Task[Any]", self._reader).cancel()
            await pause.begun
        elif self._are_hooks_receiving:
            # The end of the channel has called them off.
            await pause.begun
        else:
            pause.begun.set_result(None)
        return pause.over

    def peer_left(self) -> None:
        """The peer, or the server, has ended the connection, though nobody may receive at present."""
        if not self._ends_with_server():
            super().peer_left()

    def _ends_with_server(self) -> bool:
        """End if the server stops and the inbox is full; return whether that is so."""
        end = self.unread_end
        stops = isinstance(end, Close) and (end.code, end.by) == (CloseCode.SERVICE_RESTART, "server")
        if stops and self._reading_paused:
            # Nothing more can be sent, whatever the hooks still do, and the process wants to end.
            self.end(end)
            return True
        return False

    @property
    def unread_end(self) -> Close | Unknown:
        """How the connection has ended, as far as wsdeco's own protocol tells."""
        return (None if self._extension is None else self._extension.connection.end) or Unknown()

    async def _take_end(self, message: Message) -> None:
        end = end_of(self._extension, message)
        if isinstance(end, Close) and end.by == "server" and end.code == CloseCode.TOO_BIG:
            # wsdeco's protocol waits with its close frame until the messages before have been answered.
            self._put_too_big()
            while self.reason is None:
                await self._resumed()
        else:
            self.end(end or disconnect_reason(message))

    async def _resumed(self) -> None:
        self._drained = self.loop.create_future()
        try:
            await self._drained
        finally:
            self._drained = None

    def _resume_reading(self) -> None:
        super()._resume_reading()
        wake(self._drained)

    # The hooks' task.

    async def event(self) -> bool | None:
        """Wait for the next event, and read meanwhile if that is lent to the hooks."""
        is_lent = self._turn is not None
        if not is_lent:
            is_changed = await self._wait()
        else:
            # Not in a frame of its own: a call costs.
            self._are_hooks_receiving = True
            try:
                message = await self._receive()
                self._are_hooks_receiving = False
                if message["type"] == "websocket.receive":
                    text: str | None = message.get("text")
                    self.deliver(text if text is not None else message["bytes"])
                else:
                    self._take_back(message)
            except BaseException as exc:
                self._are_hooks_receiving = False
                if not self._is_settled(exc):
                    raise
            is_changed, self._is_changed = self._is_changed, False
            if self._turn is None:
                if self._pause is not None:
                    wake(self._pause.begun)
                return None if self.reason is not None else await self._wait()
        if self._turn is not None:
            if not self._is_looking:
                self._is_looking = True
                self.loop.call_soon(self._look)
            elif self._received >= _EVENTS_AT_ONCE:
                await asyncio.sleep(0)
            # Behind that, for a hook that sends may give the loop to others right afterwards.
            self._received += 1
        return is_changed

    def _is_settled(self, exc: BaseException) -> bool:
        """Return whether what has interrupted `receive` is now with the server's task, or has called the hooks off."""
        if isinstance(exc, Exception):
            self._take_back(failure=exc)
            return True
        return self._called_off and not cast("asyncio.Task[Any]", self._hooks).uncancel()

    async def _wait(self) -> bool | None:
        if self._hooks is None:
            self._hooks = asyncio.current_task()
        self._are_hooks_idle = True
        try:
            return await self.next_event()
        finally:
            self._are_hooks_idle = False

    def hooks_changed(self) -> None:
        """Tell the hooks' task that hooks are to be looked up anew; while it reads, with the next message."""
        self._is_changed = self._are_hooks_receiving
        super().hooks_changed()

    # What both share.

    def _look(self) -> None:
        """See in each turn of the loop whether the hooks' task has come on since the turn before.

        A sender that only gives the loop to others has.
        """
        received, self._received = self._received, 0
        self._is_looking = False
        if self._turn is None or self._are_hooks_receiving:
            return
        if received:
            self._is_looking = True
            self.loop.call_soon(self._look)
        else:
            self._take_back()

    def _take_back(self, message: Message | None = None, failure: Exception | None = None) -> None:
        """Have the server's task read, behind what `receive` has brought the hooks and is no message."""
        turn, self._turn = self._turn, None
        if turn is not None and not turn.done():
            if failure is None:
                turn.set_result(message)
            else:
                turn.set_exception(failure)
        if self._are_hooks_receiving and not self._called_off:
            self._called_off = True
            cast("asyncio.Task[Any]", self._hooks).cancel()

    def end(self, reason: DisconnectReason) -> bool:
        """Set the reason; the server's task reads on, to the end of the peer."""
        is_first = super().end(reason)
        if is_first:
            self._take_back()
        return is_first

    def deliver(self, data: Data) -> None:
        """Put a message that has arrived into the inbox; one that is too big ends the connection in its turn."""
        self._last_frame_at = self.clock.time()
        limit = self.config.max_message_size
        # No character takes more than four bytes.
        if len(data) * 4 > limit and self.reason is None and exceeds(data, limit):
            if self._turn is not None:
                # The server's task sees at once what is behind it.
                self._take_back({"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data})
                return
            if self.message_observer is not None:
                self.message_observer.messages_received(self, [data])
            self._put_too_big()
        else:
            self.messages_received([data])

    @property
    def last_frame_at(self) -> float:
        """The time of the last frame, as far as the server shows frames: wsdeco's own shows all of them."""
        return super().last_frame_at if self._extension is None else self._extension.connection.last_activity

    def release(self) -> None:
        """Let go of what is the server's.

        Its task keeps the exception that has cancelled it; and granian keeps a refused connection open as long as
        anybody has its `send`, such as a log that keeps the traceback of what has failed here.
        """
        self._reader = self._hooks = None
        self._receive = nothing_more
        if self._extension is not None:
            self._extension.tell_departure(None)
