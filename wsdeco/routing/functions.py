"""Endpoints of `App.route`: plain HTTP, the WebSocket upgrade, or both on one path."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from types import NoneType
from typing import Any, Final, cast

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from wsdeco.connection.answers import refusal_of
from wsdeco.definition.faults import described, name_of, raise_faults
from wsdeco.definition.paths import parameter_kinds
from wsdeco.definition.signatures import (
    accepts,
    alternatives,
    namespace_of,
    outcome_of,
    parameters_of,
    resolve,
    signature_of,
)
from wsdeco.definition.supply import SUPPLIES, Supply, fault_of, path_supplies, request_supply, supplied_call
from wsdeco.reasons import HandlerError
from wsdeco.rooms.members import Members
from wsdeco.routing.denial import deny
from wsdeco.routing.endpoints import Context
from wsdeco.routing.routes import HttpRoute, SocketRoute
from wsdeco.routing.upgrade import WebSocketUpgrade
from wsdeco.values import nearest

__all__ = ["endpoint_routes"]

logger: Final = logging.getLogger("wsdeco")

_CLOSE_MATCH: Final = 0.75
"""Similarity from which the name of a first parameter counts as a misspelt one, and not as that of the request."""

_UPGRADE: Final = Supply(WebSocketUpgrade, lambda it: it if isinstance(it, WebSocketUpgrade) else None)

_SUPPLIES: Final = {"request": request_supply(Request)} | SUPPLIES | {"upgrade": _UPGRADE}


def endpoint_routes(
    path: str, endpoint: object, methods: Collection[str] | None, name: str | None, context: Context, room: Members
) -> list[BaseRoute]:
    """Return the Starlette routes that serve `endpoint` on `path`.

    Plain HTTP requests and, if a parameter is called `upgrade` or annotated `WebSocketUpgrade`, handshakes
    reach the endpoint; each parameter is filled by name, as `__init__` of a handler is. Connections enter `room`.

    Raises:
        HandlerError: The endpoint is not a function, or cannot be called; the error lists every fault.
        TypeError: `methods` is not a list of HTTP methods.
    """
    if isinstance(endpoint, type) or not callable(endpoint):
        raise HandlerError(
            f"@ws.route({path!r}) takes a function of the request, not {endpoint!r}: "
            f"a handler class goes to @ws.handler({path!r})"
        )
    _check_methods(methods)
    call = _Call(path, endpoint)
    called: str = name if name is not None else getattr(endpoint, "__name__", type(endpoint).__name__)
    routes: list[BaseRoute] = []
    if call.takes_requests:
        routes.append(HttpRoute(path, call.respond, methods=methods, name=called))
    elif methods is not None:
        raise HandlerError(
            f"{call.name} takes no plain HTTP requests, so methods={methods!r} means nothing: "
            "leave it out, or write `upgrade: WebSocketUpgrade | None`"
        )
    if call.takes_upgrades:
        routes.append(SocketRoute(path, _UpgradeEndpoint(call, called, context, room), name=called))
    return routes


class _Call:
    """A call of an endpoint, computed once."""

    def __init__(self, path: str, function: Callable[..., Any]) -> None:
        self.name = name_of(function)
        self.takes_requests = True
        self._running = outcome_of(function, None).running
        self._supplied: dict[str, Supply] = {}
        parameters = parameters_of(signature_of(function))
        faults = self._faults(function, parameters, _SUPPLIES | path_supplies(parameter_kinds(path)))
        label = described(self.name, function)
        raise_faults(f"function {self.name} cannot answer requests on {path!r}", (f"{label} {each}" for each in faults))
        call = supplied_call(function, parameters, self._supplied)
        self._started = call if self._running == "coroutine" else partial(_result_in_thread, call)

    @property
    def takes_upgrades(self) -> bool:
        return _UPGRADE in self._supplied.values()

    async def respond(self, request: Request) -> Response:
        """Answer a plain HTTP request."""
        response = self._started(request)
        # `iscoroutine` is the faster one, and true for every `async def`.
        if inspect.iscoroutine(response) or inspect.isawaitable(response):
            response = await response
        if not isinstance(response, Response) and not _is_response(response):
            raise HandlerError(
                f"{self.name} returned {_shown(response)} for a plain HTTP request: "
                "return a Starlette response, such as HTMLResponse(...) or JSONResponse(...)"
            )
        return cast("Response", response)

    async def result(self, connection: HTTPConnection) -> Any:
        """Call the endpoint; return what it gives."""
        result = self._started(connection)
        return await result if inspect.isawaitable(result) else result

    def _faults(
        self, function: object, parameters: list[inspect.Parameter], supplies: Mapping[str, Supply]
    ) -> Iterator[str]:
        if self._running == "stream":
            yield "has a `yield`: return a response, such as StreamingResponse(...)"
        namespace = namespace_of(function)
        for parameter in parameters:
            annotation = resolve(parameter.annotation, namespace, extras=True)
            supply = _supply_of(parameter, annotation, supplies, is_first=parameter is parameters[0])
            fault = fault_of(parameter, annotation, supply, supplies)
            if fault is not None:
                yield fault
            elif supply is not None:
                self._supplied[parameter.name] = supply
                self.takes_requests &= supply is not _UPGRADE or accepts(annotation, NoneType)


def _supply_of(
    parameter: inspect.Parameter, annotation: object, supplies: Mapping[str, Supply], *, is_first: bool
) -> Supply | None:
    name = parameter.name
    if WebSocketUpgrade in alternatives(annotation):
        return _UPGRADE
    if name in supplies or not is_first or parameter.default is not parameter.empty:
        return supplies.get(name)
    # Starlette's own endpoints take the request first, under any name.
    meant = nearest(name, supplies, _CLOSE_MATCH) is None and accepts(annotation, Request)
    return _SUPPLIES["request"] if meant else None


class _UpgradeEndpoint:
    def __init__(self, call: _Call, name: str, context: Context, room: Members) -> None:
        self.__name__ = name
        self._room = room
        self._call = call
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        upgrade = WebSocketUpgrade(scope, receive, send, self._context, self._room)
        try:
            response = await self._call.result(upgrade)
        except (HTTPException, WebSocketException) as exc:
            if upgrade.handled:
                raise RuntimeError(
                    f"{self._call.name} raised {type(exc).__name__} after the connection: "
                    "raise it before handle_upgrade(), or in on_connect of the handler"
                ) from exc
            status, body, headers = refusal_of(exc)
            response = PlainTextResponse(body, status, headers)
        if upgrade.handled:
            return
        if not _is_response(response):
            logger.error(
                "%s left a WebSocket handshake unanswered: call `await handle_upgrade(upgrade, ...)`, or return a "
                "response that refuses it",
                self._call.name,
            )
            response = PlainTextResponse("Internal Server Error", 500)
        await deny(response, scope, receive, send)


async def _result_in_thread(call: Callable[[HTTPConnection], Any], connection: HTTPConnection) -> Any:
    result = await run_in_threadpool(call, connection)
    return await result if inspect.isawaitable(result) else result


def _is_response(value: object) -> bool:
    # Any ASGI app will do; a class is one that somebody forgot to call.
    return callable(value) and not isinstance(value, type)


def _shown(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _check_methods(methods: object) -> None:
    if methods is None:
        return
    is_list = isinstance(methods, Collection) and not isinstance(methods, str)
    listed = list(cast("Collection[object]", methods)) if is_list else []
    if not listed or not all(isinstance(method, str) and method.isalpha() for method in listed):
        raise TypeError(f"methods must be a list of HTTP methods such as ['GET', 'POST'], not {methods!r}")
