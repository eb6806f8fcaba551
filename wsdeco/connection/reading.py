"""A lifecycle whose channel is read by the task in which the server calls the app.

So a peer's close, a timeout or a shutdown is seen while a hook runs in the task beside it. While none runs, that task
may read (`wsdeco.channels.receiving`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, Final, cast

from wsdeco.channels.base import Channel
from wsdeco.connection.lifecycle import Lifecycle
from wsdeco.definition.base import Factory
from wsdeco.reasons import Unknown

__all__ = ["ReadingLifecycle"]

logger: Final = logging.getLogger("wsdeco")


class ReadingLifecycle(Lifecycle):
    """Runs the hooks of one handler instance, and reads its channel."""

    __slots__ = ("_cancellation", "_reading", "_server_task", "_stopped_reading")

    def __init__(self, channel: Channel, factory: Factory, name: str) -> None:
        """Prepare to serve `channel` with what `factory` builds; `name` stands for the handler in the log."""
        super().__init__(channel, factory, name)
        self._cancellation: asyncio.CancelledError | None = None
        self._reading = False
        self._server_task: asyncio.Task[Any] | None = None
        self._stopped_reading = False

    async def run(self) -> None:
        """Serve the connection; return when everything about it has ended.

        Raises:
            asyncio.CancelledError: The server has cancelled the task; `on_disconnect` has run all the same.
        """
        channel = self.channel
        try:
            if not await channel.connect():
                return
            self._server_task = asyncio.current_task()
            self._hooks_task = self._start_hooks()
            self._reading = True
            await self._interrupted_in(channel.read())
            self._reading = False
            while not self._hooks_task.done():
                await self._interrupted_in(asyncio.wait((self._hooks_task,)))
            flushing = True
            while flushing:
                flushing = await self._interrupted_in(channel.flushed())
        finally:
            self._release()
        cancellation, self._cancellation = self._cancellation, None
        if cancellation is not None:
            try:
                # The exception that arrived: anyio knows its own cancellations by their text.
                raise cancellation
            finally:
                # Its traceback holds this frame.
                del cancellation

    async def _interrupted_in(self, awaitable: Awaitable[object]) -> bool:
        try:
            await awaitable
        except asyncio.CancelledError as exc:
            stopped, self._stopped_reading = self._stopped_reading, False
            if stopped and cast("asyncio.Task[Any]", self._server_task).uncancel() == 0:
                return False
            self._cancellation = exc
            self.shut_down()
            return True
        except Exception as exc:
            # The server broke its side of ASGI: nothing more will come.
            logger.debug("%s: receive() failed", self._name, exc_info=exc)
            self.channel.abort()
            self.channel.end(Unknown())
        return False

    def _stop_reading(self) -> None:
        if self._reading and not self._stopped_reading:
            self._stopped_reading = True
            cast("asyncio.Task[Any]", self._server_task).cancel()

    def _release(self) -> None:
        super()._release()
        # A task that was cancelled keeps the exception, whose traceback holds this object.
        self._server_task = None

    def _is_expected_cancellation(self) -> bool:
        server_task = self._server_task
        return super()._is_expected_cancellation() or (server_task is not None and server_task.cancelling() > 0)
