"""A Litestar route handler, on uvicorn; if wsdeco's backplane is in the environment, its channels use that Redis."""

import os
from typing import Any

from benchmarks.peers.common import load, parse_options, run_uvicorn


async def echo(socket: Any) -> None:
    await socket.accept()
    async for text in socket.iter_data(mode="text"):
        await socket.send_text(text)


async def room(socket: Any, channels: Any) -> None:
    await socket.accept()
    async with channels.start_subscription(["room"]) as subscriber, subscriber.run_in_background(socket.send_text):
        async for text in socket.iter_data(mode="text"):
            channels.publish(text, ["room"])


if __name__ == "__main__":
    litestar = load("litestar")
    channels_module = load("litestar.channels")
    url = os.environ.get("WSDECO_BACKPLANE")
    if url:
        redis = load("redis.asyncio").Redis.from_url(url)
        backend = load("litestar.channels.backends.redis").RedisChannelsPubSubBackend(redis=redis)
    else:
        backend = load("litestar.channels.backends.memory").MemoryChannelsBackend()
    # Litestar reads the annotations when the app starts.
    echo.__annotations__["socket"] = room.__annotations__["socket"] = litestar.WebSocket
    room.__annotations__["channels"] = channels_module.ChannelsPlugin
    handlers = [litestar.websocket("/ws")(echo), litestar.websocket("/room")(room)]
    plugin = channels_module.ChannelsPlugin(backend=backend, channels=["room"])
    run_uvicorn(litestar.Litestar(handlers, plugins=[plugin]), parse_options())
