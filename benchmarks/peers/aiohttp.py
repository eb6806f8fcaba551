"""aiohttp's server."""

from typing import Any

from benchmarks.peers.common import HOST, MAX_MESSAGE_SIZE, load, parse_options, run_until_killed

if __name__ == "__main__":
    web = load("aiohttp.web")
    kinds = load("aiohttp").WSMsgType
    options = parse_options()

    async def echo(request: Any) -> Any:
        websocket = web.WebSocketResponse(compress=options.compression, max_msg_size=MAX_MESSAGE_SIZE + 1)
        await websocket.prepare(request)
        async for message in websocket:
            if message.type is kinds.TEXT:
                await websocket.send_str(message.data)
            elif message.type is kinds.BINARY:
                await websocket.send_bytes(message.data)
        return websocket

    async def start() -> Any:
        app = web.Application()
        app.router.add_get("/ws", echo)
        app.router.add_get("/binary", echo)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOST, options.port, backlog=1024).start()
        return runner

    run_until_killed(start)
