"""The functions that begin and end an app, checked when they are registered."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias, TypeVar, cast

from starlette.applications import Starlette

from wsdeco.definition.faults import name_of
from wsdeco.definition.signatures import bindable, signature_of
from wsdeco.reasons import HandlerError

__all__ = [
    "DecoratedLifespan",
    "DecoratedWarning",
    "LifespanFunction",
    "WarningFunction",
    "checked_lifespan",
    "checked_warning",
]

LifespanFunction: TypeAlias = Callable[[Starlette], AsyncIterator[Any] | AbstractAsyncContextManager[Any]]
"""Start-up and shutdown: an async generator function, or one that returns an async context manager."""

DecoratedLifespan = TypeVar("DecoratedLifespan", bound=LifespanFunction)

WarningFunction: TypeAlias = Callable[[], Awaitable[object]]
"""What is called when a drain begins: an async function without parameters."""

DecoratedWarning = TypeVar("DecoratedWarning", bound=WarningFunction)


def checked_lifespan(function: object) -> Callable[[Starlette], AbstractAsyncContextManager[Any]]:
    """Return what opens the context of a lifespan.

    Raises:
        HandlerError: `function` is no async generator function, or cannot be called with the app alone.
    """
    inner: Any = inspect.unwrap(function) if callable(function) else None
    if not callable(function) or inspect.iscoroutinefunction(inner) or inspect.isgeneratorfunction(inner):
        fault = "is no async generator"
    elif not bindable(signature_of(function), 1):
        fault = "cannot be called with the app alone"
    else:
        opens: Any = asynccontextmanager(function) if inspect.isasyncgenfunction(function) else function
        return cast("Callable[[Starlette], AbstractAsyncContextManager[Any]]", opens)
    name = name_of(function)
    raise HandlerError(
        f"{name} {fault}, and @ws.lifespan takes an async generator of the app: write `async def {name}(app):` with "
        "one `yield`"
    )


def checked_warning(function: object) -> WarningFunction:
    """Return what is called when a drain begins.

    Raises:
        HandlerError: `function` is no async function, or cannot be called without arguments.
    """
    if not inspect.iscoroutinefunction(function):
        fault = "is no async function"
    elif not bindable(signature_of(function), 0):
        fault = "cannot be called without arguments"
    else:
        return cast("WarningFunction", function)
    name = name_of(function)
    raise HandlerError(f"{name} {fault}, and @ws.on_drain takes one: write `async def {name}():`")
