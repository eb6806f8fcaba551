"""The messages with types of one connection: what is invalid, what answers a request, and what `on_message` gets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.exceptions import WebSocketException

from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data
from wsdeco.reasons import CloseCode, cut_close_reason
from wsdeco.typed.reader import ANSWER, OURS, Id, Invalid, Reader

if TYPE_CHECKING:
    from wsdeco.typed.dialogue import Dialogue

__all__ = ["Conversation"]

logger: Final = logging.getLogger("wsdeco")


class _Request(NamedTuple):
    answer: asyncio.Future[Any]
    reader: Reader


class Conversation:
    """Reads and writes the messages of one connection."""

    __slots__ = (
        "_channel",
        "_config",
        "_invalid",
        "_looked_at",
        "_on_message",
        "_reader",
        "_requests",
        "_sent",
        "_watched",
        "_writer",
        "dialogue",
    )

    def __init__(self, dialogue: Dialogue, channel: Channel) -> None:
        self._channel = channel
        self._config = channel.config
        self.speak(dialogue)
        self._on_message: Callable[[Any], Any] = _nobody
        self._invalid = 0
        self._requests: dict[Id, _Request] | None = None
        self._sent = 0
        self._watched: asyncio.Future[bool | None] | None = None
        self._looked_at = 0

    def speak(self, dialogue: Dialogue) -> None:
        """Read and write messages as `dialogue` says from now on; requests go on waiting for their answers."""
        self.dialogue: Dialogue = dialogue
        self._reader = dialogue.reader
        self._writer = dialogue.writer

    def encode(self, message: object) -> Data:
        """Return the frame of a message."""
        return self._writer.write(message)

    def encode_json(self, message: object) -> str:
        """Return the text of a message as JSON, whatever the codec is."""
        return self.dialogue.encode_json(message)

    def bind(self, on_message: Callable[[Any], Any], *, streams: bool) -> Callable[[Data], Any]:
        """Return what takes frames in the place of `on_message`, and gives some."""
        self._on_message = on_message
        return self._stream if streams else self._reply

    async def _reply(self, frame: Data) -> Data | None:
        try:
            message, number = self._read(frame)
        except Invalid as fault:
            return self._refuse(fault)
        if message is ANSWER:
            return self._take_answer(frame, number)
        reply = await self._on_message(message)
        return None if reply is None else self._writer.write(reply, number)

    async def _stream(self, frame: Data) -> AsyncIterator[Data]:
        try:
            message, number = self._read(frame)
        except Invalid as fault:
            yield self._refuse(fault)
            return
        if message is ANSWER:
            fault_told = self._take_answer(frame, number)
            if fault_told is not None:
                yield fault_told
            return
        replies = self._on_message(message)
        try:
            async for reply in replies:
                yield self._writer.write(reply, number)
        finally:
            if isinstance(replies, AsyncGenerator):
                await replies.aclose()
        if number is not None:
            yield self._writer.write({"id": number, "done": True})

    def _read(self, frame: Data) -> tuple[Any, Id | None]:
        if self._requests is not None:
            self._looked_at -= 1
        if self._reader is None:
            return frame, None
        message, number = self._reader.read(frame)
        if message is not ANSWER:
            self._invalid = 0
            if self._requests is not None:
                # The hook may wait for an answer, which comes while it runs.
                self._watch()
        return message, number

    def _refuse(self, fault: Invalid) -> Data:
        channel = self._channel
        channel.undelivered += 1
        self._invalid += 1
        if channel.observer is not None:
            channel.observer.message_invalid(channel)
        logger.info("invalid message from %s: %s at %s", channel.addr, fault.message, fault.path)
        if channel.config.invalid == "close":
            raise WebSocketException(CloseCode.INVALID_UTF8, f"{fault.path}: {fault.message}")
        if self._invalid > channel.config.max_invalid:
            raise WebSocketException(CloseCode.POLICY, "too many invalid messages")
        told = {"type": "error", "code": "invalid", "message": fault.message, "path": fault.path}
        return self._writer.write(told if fault.id is None else {**told, "id": fault.id})

    # Requests of ours.

    async def ask(self, message: object, answer: Any, timeout: float) -> Any:  # noqa: ASYNC109 - on the channel's clock
        """Do what `Sink.ask` does."""
        if self._reader is None:
            raise TypeError("ask() needs an on_message that is annotated with types, since answers come there")
        channel = self._channel
        reader = self.dialogue.answers(answer)
        self._sent += 1
        number = f"{OURS}{self._sent}"
        frame = self._writer.write(message, number)
        if self._reader.number_of(frame) != number:
            raise TypeError(f"ask() takes a message whose wire form is an object without an `id`, not {message!r}")
        future: asyncio.Future[Any] = channel.loop.create_future()
        requests = self._requests if self._requests is not None else self._begin_requests()
        requests[number] = _Request(future, reader)
        text = f"no answer to request {number} within {timeout:g} s"
        timer = channel.clock.call_at(channel.clock.time() + timeout, lambda: _fail(future, TimeoutError(text)))
        try:
            await channel.send(frame)
            self._watch()
            return await future
        finally:
            timer.cancel()
            future.cancel()
            del requests[number]
            if not requests:
                self._end_requests()

    def _begin_requests(self) -> dict[Id, _Request]:
        channel = self._channel
        requests = self._requests = {}
        self._looked_at = 0
        # A room is told of the end of the channel, and so is this.
        channel.note_room(self)
        # The answer comes behind what was sent before it, which must be read to find it; within bounds all the same.
        config = self._config
        channel.config = config.replace(max_inbox=2 * (config.max_inbox + config.max_message_size))
        channel.wake_reader()
        return requests

    def _end_requests(self) -> None:
        channel = self._channel
        self._requests = None
        self._watched = None
        channel.forget_room(self)
        channel.config = self._config

    def _watch(self) -> None:
        """Look at what waits in the inbox, and again when more arrives."""
        event = self._channel.next_event()
        if event is not self._watched:
            self._watched = event
            event.add_done_callback(self._event)
            self._look()

    def _event(self, event: asyncio.Future[bool | None]) -> None:
        if self._requests is not None:
            self._watch()

    def _look(self) -> None:
        self._looked_at = self._channel.sift(self._is_other, max(0, self._looked_at))

    def _is_other(self, frame: Data) -> bool:
        number = self._reader.number_of(frame) if self._reader is not None else None
        if number is None or number not in (self._requests or ()):
            return True
        channel = self._channel
        try:
            told = self._take_answer(frame, number)
        except WebSocketException as exc:
            text = cut_close_reason(exc.reason)
            channel.close_by_server(exc.code, text)
        else:
            if told is not None:
                channel.send_nowait(told)
        return False

    def _take_answer(self, frame: Data, number: Id | None) -> Data | None:
        """Give an answer to who waits for it; return what the peer is told if it is invalid."""
        waiting = (self._requests or {}).get(number) if number is not None else None
        if waiting is None or waiting.answer.done():
            return self._refuse(Invalid(f"No request {number!r} waits for an answer", "$.id", number))
        try:
            answer, _ = waiting.reader.read(frame, is_answer=True)
        except Invalid as fault:
            # The request waits on, as the peer may answer once more.
            return self._refuse(fault)
        self._invalid = 0
        waiting.answer.set_result(answer)
        return None

    def add(self, channel: Channel) -> None:
        """Do nothing: no room is meant."""

    def discard(self, channel: Channel) -> None:
        """Tell those who wait for answers that the channel has ended."""
        self._look()
        for waiting in (self._requests or {}).values():
            _fail(waiting.answer, channel.closed_error())


def _nobody(message: object) -> None:
    """Stand for a hook that is not bound yet."""


def _fail(future: asyncio.Future[Any], exc: Exception) -> None:
    if not future.done():
        future.set_exception(exc)
