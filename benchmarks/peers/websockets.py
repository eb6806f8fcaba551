"""The `websockets` library's asyncio server."""

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve

from benchmarks.peers.common import HOST, MAX_MESSAGE_SIZE, parse_options, run_until_killed

members: set[ServerConnection] = set()


async def echo(connection: ServerConnection) -> None:
    if connection.request is not None and connection.request.path == "/room":
        await room(connection)
        return
    if connection.request is not None and connection.request.path == "/length":
        async for message in connection:
            await connection.send(str(len(message)))
        return
    async for message in connection:
        await connection.send(message)


async def room(connection: ServerConnection) -> None:
    members.add(connection)
    try:
        async for message in connection:
            broadcast(members, message)
    finally:
        members.discard(connection)


if __name__ == "__main__":
    options = parse_options()

    async def start() -> Server:
        compression = "deflate" if options.compression else None
        return await serve(
            echo,
            HOST,
            options.port,
            compression=compression,
            ping_interval=None,
            max_size=MAX_MESSAGE_SIZE,
            backlog=1024,
        )

    run_until_killed(start)
