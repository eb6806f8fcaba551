"""aiohttp's server."""

from typing import Any

from benchmarks.peers.common import HOST, load, parse_options, run_until_killed

if __name__ == "__main__":
    web = load("aiohttp.web")
    text_message = load("aiohttp").WSMsgType.TEXT
    options = parse_options()

    async def echo(request: Any) -> Any:
        websocket = web.WebSocketResponse(compress=options.compression)
        await websocket.prepare(request)
        async for message in websocket:
            if message.type is text_message:
                await websocket.send_str(message.data)
        return websocket

    async def start() -> Any:
        app = web.Application()
        app.router.add_get("/ws", echo)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOST, options.port, backlog=1024).start()
        return runner

    run_until_killed(start)
