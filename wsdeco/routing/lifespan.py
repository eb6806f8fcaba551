"""Start-up and shutdown of an app, checked when they are registered."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias, TypeVar, cast

from starlette.applications import Starlette

from wsdeco.definition.faults import name_of
from wsdeco.definition.signatures import bindable, signature_of
from wsdeco.reasons import HandlerError

__all__ = ["DecoratedLifespan", "LifespanFunction", "checked_lifespan"]

LifespanFunction: TypeAlias = Callable[[Starlette], AsyncIterator[Any] | AbstractAsyncContextManager[Any]]
"""Start-up and shutdown: an async generator function, or one that returns an async context manager."""

DecoratedLifespan = TypeVar("DecoratedLifespan", bound=LifespanFunction)


def checked_lifespan(function: object) -> Callable[[Starlette], AbstractAsyncContextManager[Any]]:
    """Return what opens the context of a lifespan.

    Raises:
        HandlerError: `function` is no async generator function, or cannot be called with the app alone.
    """
    signature = signature_of(function)
    innermost: Any = inspect.unwrap(function) if callable(function) else None
    if not callable(function) or inspect.iscoroutinefunction(innermost) or inspect.isgeneratorfunction(innermost):
        fault = "is no async generator"
    elif signature is not None and not bindable(signature, 1):
        fault = "cannot be called with the app alone"
    else:
        opens: Any = asynccontextmanager(function) if inspect.isasyncgenfunction(function) else function
        return cast("Callable[[Starlette], AbstractAsyncContextManager[Any]]", opens)
    name = name_of(function)
    raise HandlerError(
        f"{name} {fault}, and @ws.lifespan takes an async generator of the app: write `async def {name}(app):` with "
        "one `yield`"
    )
