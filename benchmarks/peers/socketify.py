"""socketify: Python callbacks on uWebSockets."""

from typing import Any, Final

from benchmarks.peers.common import HOST, MAX_MESSAGE_SIZE, load, parse_options

LONGEST_IDLE: Final = 960
"""Seconds without a message after which uWebSockets pings or drops a connection: the most it takes."""

if __name__ == "__main__":
    socketify = load("socketify")
    options = parse_options()
    compress = socketify.CompressOptions

    def echo(connection: Any, message: Any, opcode: Any) -> None:
        connection.send(message, opcode, options.compression)

    def announce(config: Any) -> None:
        pass

    def join(connection: Any) -> None:
        connection.subscribe("room")

    def publish(_connection: Any, message: Any, opcode: Any) -> None:
        app.publish("room", message, opcode, compress=options.compression)

    app = socketify.App()
    app.ws(
        "/ws",
        {
            "compression": compress.SHARED_COMPRESSOR if options.compression else compress.DISABLED,
            "max_payload_length": MAX_MESSAGE_SIZE,
            "max_backpressure": MAX_MESSAGE_SIZE,
            "idle_timeout": LONGEST_IDLE,
            "message": echo,
        },
    )
    app.ws(
        "/room", {"max_backpressure": MAX_MESSAGE_SIZE, "idle_timeout": LONGEST_IDLE, "open": join, "message": publish}
    )
    app.listen(socketify.AppListenOptions(port=options.port, host=HOST), announce)
    app.run()
