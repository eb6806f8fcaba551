"""picows with a raw callback: no decoding, no hook, no task."""

from typing import Any

from benchmarks.peers.common import HOST, MAX_MESSAGE_SIZE, load, parse_options, run_until_killed

if __name__ == "__main__":
    picows: Any = load("picows")
    close_frame = picows.WSMsgType.CLOSE
    options = parse_options()

    class Echo(picows.WSListener):  # type: ignore[misc]  # picows is not installed where this is checked
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == close_frame:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()
            else:
                transport.send(frame.msg_type, frame.get_payload_as_bytes())

    members: set[Any] = set()

    class Member(picows.WSListener):  # type: ignore[misc]  # picows is not installed where this is checked
        def on_ws_connected(self, transport: Any) -> None:
            members.add(transport)

        def on_ws_disconnected(self, transport: Any) -> None:
            members.discard(transport)

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == close_frame:
                transport.disconnect()
                return
            payload = frame.get_payload_as_bytes()
            for member in members:
                member.send(frame.msg_type, payload)

    def listener(request: Any) -> Echo | Member:
        return Member() if request.path == b"/room" else Echo()

    async def start() -> Any:
        return await picows.ws_create_server(
            listener, HOST, options.port, max_frame_size=MAX_MESSAGE_SIZE + 64, backlog=1024
        )

    run_until_killed(start)
