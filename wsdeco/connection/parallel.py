"""Calls of `on_message` in tasks of their own: several at a time, or bounded in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data, checked_kind
from wsdeco.connection.replies import ADVICE, send_stream
from wsdeco.connection.timed_calls import TimedCalls
from wsdeco.definition.plan import Plan

__all__ = ["call_in_tasks"]

LookUp: TypeAlias = Callable[[], tuple[Plan, Callable[[Data], Any]]]
Begun: TypeAlias = Callable[[str], None]
Ended: TypeAlias = Callable[[BaseException | None], None]
Over: TypeAlias = Callable[[BaseException | None, bool], bool]


async def call_in_tasks(
    channel: Channel,
    plan: Plan,
    on_message: Callable[[Data], Any],
    look_up: LookUp,
    begun: Begun,
    ended: Ended,
    over: Over,
    timed: TimedCalls | None = None,
) -> tuple[Plan, Callable[[Data], Any]]:
    """Take the messages that are there, and return when no call is under way and no further message has come.

    So an idle connection keeps nothing of this.

    Args:
        channel: Where they come from; `parallel` of its limits is how many are handled at a time.
        plan: Which of them are for the hook.
        on_message: The hook.
        look_up: Returns both anew, when they have become others.
        begun: Called at the beginning of each call, in its task, with the name of the hook.
        ended: Called at its end, in its task, with what it has raised.
        over: Called when that is known, with the same and whether no other call is under way; returns whether the hook
            is to be looked up anew. That a call was cancelled for its time is nothing that it has raised.
        timed: Bounds the time of each call; `None` for no bound.

    Returns:
        The plan and the hook at last.
    """
    limit = channel.config.parallel
    running: set[asyncio.Task[None]] = set()
    try:
        while True:
            data = channel.take() if len(running) < limit else None
            if data is None and not running:
                return plan, on_message
            if data is None:
                is_redefined = await _wait(channel, running)
                if _settle(running, over, timed) or is_redefined:
                    plan, on_message = look_up()
            elif plan.takes_text if isinstance(data, str) else plan.takes_binary:
                running.add(channel.loop.create_task(_call(channel, plan, on_message, begun, ended, timed, data)))
            else:
                channel.undelivered += 1
    except (Exception, asyncio.CancelledError):
        # Not GeneratorExit: then the loop is thrown away, and nothing may be awaited.
        await _cancel(running)
        raise


async def _wait(channel: Channel, running: set[asyncio.Task[None]]) -> bool:
    """Wait for the end of a call, or for a message that there is room for; return whether the hook has changed."""
    waits: list[asyncio.Future[Any]] = [*running]
    event: asyncio.Future[bool | None] | None = None
    if len(running) < channel.config.parallel and channel.reason is None:
        event = channel.next_event()
        waits.append(event)
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    return event is not None and event.done() and bool(event.result())


async def _call(
    channel: Channel,
    plan: Plan,
    on_message: Callable[[Data], Any],
    begun: Begun,
    ended: Ended,
    timed: TimedCalls | None,
    data: Data,
) -> None:
    begun("on_message")
    if timed is not None:
        timed.begin(cast("asyncio.Task[None]", asyncio.current_task()))
    try:
        if plan.streams:
            await send_stream(channel, on_message(data))
        else:
            reply = await on_message(data)
            if reply is not None:
                await channel.send(checked_kind(reply, advice=ADVICE))
    except (Exception, asyncio.CancelledError) as exc:
        ended(exc)
        raise
    ended(None)


def _settle(running: set[asyncio.Task[None]], over: Over, timed: TimedCalls | None) -> bool:
    is_redefined = False
    for task in [task for task in running if task.done()]:
        running.discard(task)
        is_late = timed is not None and timed.end(task)
        cancelled = None if is_late else asyncio.CancelledError()
        is_redefined |= over(cancelled if task.cancelled() else task.exception(), not running)
    return is_redefined


async def _cancel(running: set[asyncio.Task[None]]) -> None:
    """Cancel the calls, and again each time that a deadline cancels the wait for them."""
    while running:
        for task in running:
            task.cancel()
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError:
            continue
        for task in running:
            if not task.cancelled():
                # Takes the exception, which asyncio would log otherwise: the connection has ended for another reason.
                task.exception()
        running.clear()
