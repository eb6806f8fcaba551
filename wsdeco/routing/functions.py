"""Endpoints of `App.route`: plain HTTP, the WebSocket upgrade, or both on one path."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from types import NoneType
from typing import Any, Final, cast

from starlette.concurrency import run_in_threadpool
from starlette.convertors import CONVERTOR_TYPES
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from wsdeco.definition.faults import described, name_of, raise_faults
from wsdeco.definition.paths import parameter_kinds
from wsdeco.definition.signatures import (
    UNKNOWN,
    accepts,
    alternatives,
    namespace_of,
    outcome_of,
    resolve,
    shown_type,
    signature_of,
)
from wsdeco.definition.supply import SUPPLIES, Supply, injected_by, path_supplies, request_supply
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
"""Similarity from which the name of a parameter counts as a misspelt one."""


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
        self._function = function
        self._outcome = outcome_of(function, None)
        self._arguments: dict[str, Supply] = {}
        self.takes_requests = True
        signature = signature_of(function)
        self._parameters = [] if signature is None else list(signature.parameters.values())
        raise_faults(f"function {self.name} cannot answer requests on {path!r}", self._faults(path))

    @property
    def takes_upgrades(self) -> bool:
        return _UPGRADE in self._arguments.values()

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

    def _started(self, connection: HTTPConnection) -> Any:
        arguments = {name: supply.get(connection) for name, supply in self._arguments.items()}
        if self._outcome.running == "coroutine":
            return self._function(**arguments)
        return _result_in_thread(self._function, arguments)

    def _faults(self, path: str) -> Iterator[str]:
        label = described(self.name, self._function)
        if self._outcome.running == "stream":
            yield f"{label} has a `yield`: return a response, such as StreamingResponse(...)"
        namespace = namespace_of(self._function)
        supplies = _SUPPLIES | path_supplies(parameter_kinds(path))
        for parameter in self._parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            annotation = resolve(parameter.annotation, namespace)
            supply = self._supply_of(parameter, annotation, supplies)
            fault = _fault_of(parameter, annotation, supply, supplies)
            if fault is not None:
                yield f"{label} {fault}"
            elif supply is not None:
                self._arguments[parameter.name] = supply
                self.takes_requests &= supply is not _UPGRADE or accepts(annotation, NoneType)

    def _supply_of(
        self, parameter: inspect.Parameter, annotation: object, supplies: Mapping[str, Supply]
    ) -> Supply | None:
        if WebSocketUpgrade in alternatives(annotation):
            return _UPGRADE
        if parameter.name in supplies or parameter is not self._parameters[0] or not _is_required(parameter):
            return supplies.get(parameter.name)
        # Starlette's own endpoints take the request first, under any name.
        meant = nearest(parameter.name, supplies, _CLOSE_MATCH) is None and accepts(annotation, Request)
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
        except HTTPException as exc:
            if upgrade.handled:
                raise RuntimeError(
                    f"{self._call.name} raised HTTPException after the connection: "
                    "raise it before handle_upgrade(), or in on_connect of the handler"
                ) from exc
            detail: object = exc.detail
            body = detail if isinstance(detail, str) else json.dumps(detail)
            response = PlainTextResponse(body, exc.status_code, exc.headers)
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


async def _result_in_thread(function: Callable[..., Any], arguments: Mapping[str, object]) -> Any:
    result = await run_in_threadpool(function, **arguments)
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


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is UNKNOWN


def _fault_of(
    parameter: inspect.Parameter, annotation: object, supply: Supply | None, supplies: Mapping[str, Supply]
) -> str | None:
    name = parameter.name
    mark = injected_by(parameter, annotation)
    if mark is not None:
        return f"has {mark}(...) for `{name}`, which FastAPI fills in its own endpoints only: route it by FastAPI"
    if supply is None:
        if not _is_required(parameter):
            return None
        meant = nearest(name, supplies, _CLOSE_MATCH)
        guess = f"did you mean `{meant}`? " if meant else ""
        choice = ", ".join(f"`{each}`" for each in supplies)
        return f"needs `{name}`, which nothing supplies: {guess}There are {choice}; or give it a default"
    if parameter.kind is parameter.POSITIONAL_ONLY:
        return f"takes `{name}` by position only, and is called by keyword: leave out the `/`"
    if supply.kind is not None and not accepts(annotation, supply.kind):
        wanted = f"`{name}: {supply.kind.__name__}`"
        convertor = annotation.__name__.lower() if isinstance(annotation, type) else None
        if name not in _SUPPLIES and convertor in CONVERTOR_TYPES:
            wanted += f", or `{{{name}:{convertor}}}` in the path"
        return (
            f"annotates `{name}: {shown_type(parameter.annotation)}`, and gets {supply.kind.__name__}: write {wanted}"
        )
    return None
