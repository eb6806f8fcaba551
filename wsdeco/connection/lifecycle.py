"""One connection from its handshake to exactly one `on_disconnect`.

A task of its own calls the hooks, one after the other, and is the only place that does; a hook is interrupted by
cancelling that task. The channel is read beside it, so a peer's close, a timeout or a shutdown is seen while a hook
runs: the direct channel by its protocol, the ASGI channel by the server's task (`wsdeco.connection.reading`), unless no
hook runs (`wsdeco.channels.receiving`).

    state        event                               next
    CONNECTING   on_connect sends or returns         OPEN
    CONNECTING   HTTPException                       REFUSED   (no on_disconnect)
    CONNECTING   failure, deadline, peer gone, ...   ENDED
    OPEN         message                             OPEN      (on_message)
    OPEN         peer gone, own close, deadline,     ENDED
                 failure, shutdown
    ENDED        last hook has ended                 on_disconnect, once

The channel holds the state: CONNECTING until `accepted`, ENDED as soon as it has a `reason`, which the first event
sets. `channel_ended` (`wsdeco.connection.limits`) is called at that moment and decides how long a hook may go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from typing import Any, Final, TypeVar, cast

from starlette.exceptions import HTTPException, WebSocketException

from wsdeco.channels.base import Channel
from wsdeco.channels.data import Address, Data, checked_kind
from wsdeco.channels.dialogue import Conversation
from wsdeco.channels.sink import Sink
from wsdeco.connection.answers import close_of, described, late_refusal_of, refusal_of, tell_end, tell_refusal
from wsdeco.connection.calls import ADVICE, Calls, send_stream
from wsdeco.connection.departures import advise_at_end, is_departure, is_end_of_another
from wsdeco.connection.limits import AWAITS_FIRST, INTERRUPTED, REDEFINED, SHUTTING_DOWN, LimitedConnection
from wsdeco.connection.tasks import Tasks
from wsdeco.definition.base import Factory, bound_hook
from wsdeco.definition.plan import Plan, begin_conversation, bound_on_message, continue_conversation, plan_of
from wsdeco.reasons import Close, CloseCode, ConnectionClosed, DisconnectReason, Error, Timeout, Unknown

__all__ = ["Lifecycle"]

logger: Final = logging.getLogger("wsdeco")

T = TypeVar("T")

_MESSAGES_AT_ONCE: Final = 32
"""Messages after which the hooks give the loop to others: a hook need not wait for anything by itself."""

INTERNAL_ERROR: Final = "internal error"
"""All that a peer learns of a failure (close code 1011)."""


class Lifecycle(LimitedConnection):
    """Runs the hooks of one handler instance on one channel.

    Attributes:
        channel: The channel.
        conversation: What reads and writes messages with types; `None` if there are none.
        handler: The instance; what makes it until it is made.
    """

    __slots__ = ("_done", "_name", "_tasks", "conversation", "handler")

    def __init__(self, channel: Channel, factory: Factory, name: str) -> None:
        """Prepare to serve `channel` with what `factory` builds; `name` stands for the handler in the log."""
        super().__init__(channel)
        self._name = name
        self._done: Callable[[Lifecycle], None] | None = None
        self._tasks: Tasks | None = None
        self.conversation: Conversation | None = None
        self.handler: Any = factory
        channel.owner = self

    def start(self, done: Callable[[Lifecycle], None]) -> None:
        """Serve a connection whose channel reads by itself; call `done` when everything about it has ended.

        The caller has connected the channel.
        """
        self._done = done
        self._hooks_task = self._start_hooks()

    def _start_hooks(self) -> asyncio.Task[None]:
        loop = self.channel.loop
        # One context for both: otherwise each copies one of its own. A task factory need not know of contexts.
        options: dict[str, Any] = {"context": copy_context()} if loop.get_task_factory() is None else {}
        task = loop.create_task(self._run_hooks(), name=self._name, **options)
        task.add_done_callback(self._hooks_done, **options)
        return task

    def transport_lost(self) -> None:
        """The transport of the channel is gone."""
        self._end_if_over()

    def _end_if_over(self) -> None:
        done = self._done
        if done is not None and self.channel.lost and cast("asyncio.Task[None]", self._hooks_task).done():
            # The transport may be lost between the end of the task and its callback.
            self._done = None
            self._release()
            done(self)

    def _release(self) -> None:
        channel = self.channel
        if channel.observer is not None:
            tell_end(channel, channel.observer)
        self._cancel_all_deadlines()
        if self._tasks is not None:
            self._tasks.cancel()
        channel.release()
        channel.owner = None

    def _hooks_done(self, task: asyncio.Task[None]) -> None:
        self.handler = None
        if self.channel.reason is None:
            message = f"{self._name}: the task of the connection was cancelled from outside"
            self.channel.close(CloseCode.INTERNAL_ERROR, INTERNAL_ERROR, Error(message))
        if not task.cancelled() and task.exception() is not None:
            logger.error("%s: the connection failed", self._name, exc_info=task.exception())
        self._end_if_over()

    def redefined(self) -> None:
        """Look the hooks up anew for the next message, as the class of the handler has become another one."""
        self._after_hook |= REDEFINED
        self.channel.hooks_changed()

    # Work that belongs to the connection.

    def create_task(self, work: Coroutine[Any, Any, T], name: str | None) -> asyncio.Task[T]:
        """Run `work` in a task that ends before `on_disconnect`."""
        if self._tasks is None:
            self._tasks = Tasks(self._task_failed)
        return self._tasks.create(self.channel.loop, work, name)

    def _task_failed(self, name: str, exc: BaseException) -> None:
        where = f"{self._name}: task {name}"
        if not is_end_of_another(self.channel, exc, where):
            self._fail(exc, where)

    async def _end_tasks(self) -> None:
        tasks = self._tasks
        if tasks is None:
            return
        self._limit_ending()
        # A deadline interrupts only what counts as a hook.
        self._hook = "create_task"
        try:
            await tasks.end()
        except asyncio.CancelledError:
            logger.warning("%s: tasks of %s ignore their cancellation: %s", self._name, self.channel.addr, tasks)
        self._hook_over()

    # The hooks' task.

    async def _run_hooks(self) -> None:  # noqa: C901 - a frame less
        # An idle connection keeps the frame of each coroutine from here to the event, and a message resumes them all.
        channel = self.channel
        # An eager task runs before `create_task` returns it.
        self._hooks_task = self._hooks_task or asyncio.current_task()
        if channel.accepted or not channel.closed:
            # For a peer that has gone already nothing is built.
            if channel.accepted:
                self.channel_accepted()
            else:
                channel.loop.call_soon(self._limit_connecting)
            connected: object = None
            try:
                handler: object = self.handler(channel.request)
                self.handler = handler
                cls = type(handler)
                plan = plan_of(cls, self.channel.config.codec)
                on_connect = bound_hook(handler, "on_connect")
                connected = handler
                await self._call_on_connect(plan, handler, on_connect)
                del on_connect
                if self._done is not None:
                    channel.pack_request()
                if self._state & AWAITS_FIRST:
                    # Not in a frame of its own: it would be there as long as the peer says nothing.
                    while not channel.waiting and channel.reason is None:
                        await channel.next_event()
                    self._first_message_there()
                await (self._call_in_tasks() if self._has_tasks else self._call_on_message(plan, cls))
            except BaseException as exc:
                if self._is_thrown_away():
                    raise
                self._tell_failure(exc)
                waits = not channel.accepted and channel.reason is None
                if waits and isinstance(exc, HTTPException | WebSocketException):
                    connected = None
                    await self._refuse(exc)
                else:
                    self._fail(exc)
            self._hook_over()
            self._cancel_deadlines("message_timeout")
            await self._end_tasks()
            if connected is not None:
                await self._call_on_disconnect(connected)
            self._cancel_deadlines("hook")
            channel.forget_exception()
        if not channel.accepted:
            # A refused handshake has no closing handshake, so no further event need come.
            await channel.flushed()
            self._stop_reading()

    async def _call_on_connect(
        self, plan: Plan, handler: object, on_connect: Callable[[Address, Sink], Awaitable[None]]
    ) -> None:
        channel = self.channel
        sink = Sink(channel)
        self.conversation = begin_conversation(plan, handler, channel, sink)
        self._begin_hook("on_connect")
        try:
            await on_connect(channel.addr, sink)
        except (ConnectionClosed, BaseExceptionGroup) as exc:
            if not is_end_of_another(self.channel, exc, self._where):
                raise
        if not channel.closed:
            # Part of the hook, so that a deadline interrupts it if the peer does not read.
            await channel.accept()
        self._tell_hook_ended(None)
        self._hook_over()

    def _begin_hook(self, hook: str) -> None:
        self._hook = hook
        observer = self.channel.observer
        if observer is not None:
            observer.hook_started(self.channel, hook)

    def _tell_hook_ended(self, exception: BaseException | None) -> None:
        observer = self.channel.observer
        if observer is not None and self._hook is not None:
            observer.hook_ended(self.channel, self._hook, exception)

    def _look_up(self, plan: Plan | None = None, cls: type | None = None) -> tuple[Plan, Callable[[Data], Any]]:
        handler: object = self.handler
        if plan is None or type(handler) is not cls:
            plan = plan_of(type(handler), self.channel.config.codec)
        self.conversation = continue_conversation(plan, self.conversation, self.channel)
        return plan, bound_on_message(plan, handler, self.conversation)

    async def _call_on_message(self, plan: Plan, cls: type) -> None:  # noqa: C901, PLR0912 - the fast path: a call costs
        plan, on_message = self._look_up(plan, cls)
        channel = self.channel
        task = cast("asyncio.Task[None]", self._hooks_task)
        observer = channel.observer if channel.observer is not None and channel.observer.sees_hooks else None
        has_idle_timeout = self.channel.config.idle_timeout is not None
        left = _MESSAGES_AT_ONCE
        while True:
            data = channel.take()
            if data is None:
                if channel.reason is not None:
                    return
                if await channel.event():
                    plan, on_message = self._look_up()
                left = _MESSAGES_AT_ONCE
                continue
            if not (plan.takes_text if isinstance(data, str) else plan.takes_binary):
                channel.undelivered += 1
                continue
            self._hook = "on_message"
            if observer is not None:
                observer.hook_started(channel, "on_message")
            try:
                if plan.streams:
                    await send_stream(channel, on_message(data))
                else:
                    reply = await on_message(data)
                    if reply is not None:
                        if type(reply) is not str:
                            reply = checked_kind(reply, advice=ADVICE)
                        if not channel.try_send(reply):
                            await channel.send(reply)
                        # This frame would keep the reply for as long as the connection is idle.
                        reply = None
            except (ConnectionClosed, BaseExceptionGroup) as exc:
                if not is_departure(self.channel, exc, self._hook) and not is_end_of_another(
                    self.channel, exc, self._where
                ):
                    raise
            if observer is not None:
                observer.hook_ended(channel, "on_message", None)
            if has_idle_timeout or self._after_hook or task.cancelling():
                if self._hook_over():
                    plan, on_message = self._look_up()
            else:
                self._hook = None
            left -= 1
            if not left:
                left = _MESSAGES_AT_ONCE
                await asyncio.sleep(0)

    @property
    def _has_tasks(self) -> bool:
        return self.channel.config.parallel > 1 or self.channel.config.message_timeout is not None

    def _tell_failure(self, exc: BaseException) -> None:
        # Calls in tasks of their own tell their end there.
        if self._hook != "on_message" or not self._has_tasks:
            self._tell_hook_ended(exc)

    async def _call_in_tasks(self) -> None:
        channel = self.channel
        plan, on_message = self._look_up()
        while True:
            calls = Calls(self, self._begin_hook, self._tell_hook_ended, self._call_over, self._call_late)
            plan, on_message = await calls.run(plan, on_message, self._look_up)
            # An idle connection keeps nothing of its calls.
            del calls
            if channel.reason is not None:
                return
            if await channel.next_event():
                plan, on_message = self._look_up()

    def _call_late(self, call: asyncio.Task[None]) -> None:
        channel = self.channel
        seconds = cast(float, channel.config.message_timeout)
        if channel.config.on_message_timeout == "close" and channel.reason is None:
            self._time_out("message_timeout", seconds)
        elif not isinstance(channel.reason, Timeout):
            if not call.cancelling():
                logger.warning("%s.on_message for %s took more than %g s", self._name, channel.addr, seconds)
            call.cancel()

    def _call_over(self, exc: BaseException | None, is_last: bool) -> bool:
        if exc is not None and not is_end_of_another(self.channel, exc, self._where):
            self._fail(exc)
        return self._hook_over() if is_last else self._after_hook >= REDEFINED

    async def _call_on_disconnect(self, handler: object) -> None:
        reason = await self._reason()
        undelivered = self.channel.undelivered
        if undelivered:
            logger.info("%s: %d messages of %s reached no hook", self._name, undelivered, self.channel.addr)
        self._limit_ending()
        self._begin_hook("on_disconnect")
        try:
            await bound_hook(handler, "on_disconnect")(reason)
        except BaseException as exc:
            if self._is_thrown_away():
                raise
            self._tell_hook_ended(exc)
            self._fail(exc)
        else:
            self._tell_hook_ended(None)
        self._hook_over()

    async def _reason(self) -> DisconnectReason:
        try:
            reason = await self.channel.ended()
        except asyncio.CancelledError:
            self.channel.end(Unknown())
            reason = await self.channel.ended()
        self.channel.discard_inbox()
        return reason

    async def _refuse(self, exc: HTTPException | WebSocketException) -> None:
        # Also if __init__ refuses: a deadline interrupts only what counts as a hook.
        self._hook = "on_connect"
        channel = self.channel
        try:
            if isinstance(exc, WebSocketException):
                logger.info("%s refused by %s: %s", channel.addr, self._name, described(exc))
            if channel.config.refuse_after_upgrade:
                status, code, text = late_refusal_of(exc)
                tell_refusal(channel, status)
                await channel.refuse_after_upgrade(code, text)
            else:
                refusal = refusal_of(exc)
                await channel.refuse(*refusal)
                tell_refusal(channel, refusal[0])
        except BaseException as failure:
            if self._is_thrown_away():
                raise
            self._fail(failure)

    def _fail(self, exc: BaseException, where: str | None = None) -> None:
        if where is None:
            where = self._where
        if is_departure(self.channel, exc, self._hook):
            advise_at_end(self.channel, exc, self._hook, where)
            return
        if isinstance(exc, WebSocketException):
            close = close_of(exc)
            if isinstance(close, Close):
                logger.info("%s closes %s: %s", where, self.channel.addr, described(exc))
                self.channel.close(close.code, close.reason, close)
                return
            exc = close
        if isinstance(exc, asyncio.CancelledError) and self._is_expected_cancellation():
            logger.warning("%s for %s was cancelled: %s", where, self.channel.addr, self.channel.reason)
            return
        if isinstance(exc, asyncio.CancelledError) and self._hook is None:
            # A loop that ends cancels thousands that wait: their tracebacks would hide why it ends.
            logger.warning("%s for %s was cancelled from outside", where, self.channel.addr)
        else:
            logger.error("%s failed for %s", where, self.channel.addr, exc_info=exc)
        message = f"{where} raised {described(exc)}"
        self.channel.close(CloseCode.INTERNAL_ERROR, INTERNAL_ERROR, Error(message, exc))

    def _is_thrown_away(self) -> bool:
        # The event loop was thrown away: GeneratorExit arrives outside of the task, and nothing may be awaited.
        return asyncio.current_task(self.channel.loop) is not self._hooks_task

    def _is_expected_cancellation(self) -> bool:
        return bool(self._after_hook & INTERRUPTED) or bool(self._state & SHUTTING_DOWN)

    @property
    def _where(self) -> str:
        return f"{self._name}.{self._hook}" if self._hook is not None else self._name
