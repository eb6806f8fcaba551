"""The `websockets` library's asyncio server."""

from websockets.asyncio.server import Server, ServerConnection, serve

from benchmarks.peers.common import HOST, parse_options, run_until_killed


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


if __name__ == "__main__":
    options = parse_options()

    async def start() -> Server:
        compression = "deflate" if options.compression else None
        return await serve(echo, HOST, options.port, compression=compression, ping_interval=None, backlog=1024)

    run_until_killed(start)
