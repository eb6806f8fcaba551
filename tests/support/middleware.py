"""What stands between a server and a route, so that the route cannot take the direct channel."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Looking:
    """A middleware that sees each message, as those of tracing and sessions do, and builds its own scope and events."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_and_look() -> Message:
            return await receive()

        async def send_and_look(message: Message) -> None:
            known = ("type", "subprotocol", "headers", "text", "bytes", "code", "reason", "status", "body", "more_body")
            await send({key: value for key, value in message.items() if key in known})

        await self.app(dict(scope), receive_and_look, send_and_look)


class SeesMessages:
    """A middleware that wraps `receive`, so that messages go the way of ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched() -> Message:
            return await receive()

        await self.app(scope, watched, send)
