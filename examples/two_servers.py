"""Two servers, as on two machines, with one broker between them: who writes to one is read on both.

Start it with `python examples/two_servers.py` after `pip install 'wsdeco[cluster]'`, and in two other terminals write
`python -m websockets ws://127.0.0.1:8000/ws` and `python -m websockets ws://127.0.0.1:8001/ws`.
"""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

from wsdeco import Address, Sink, ws

NATS = Path(sysconfig.get_path("scripts")) / "nats-server"
everybody = ws.room("everybody")


@ws.handler("/ws")
class Member:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        everybody.join(sink)

    async def on_message(self, text: str) -> None:
        await everybody.broadcast(text)


def main() -> None:
    if not NATS.exists():
        sys.exit("there is no nats-server here: pip install 'wsdeco[cluster]'")
    port = int(os.environ.get("PORT", "8000"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        broker_port = str(free.getsockname()[1])
    nats = [str(NATS), "--addr", "127.0.0.1", "--port", broker_port]
    # On machines of their own, each would be started with this line, and the address of the broker.
    server = [sys.executable, "-m", "wsdeco", "run", __file__, "--workers", "2", "--port"]
    os.environ["WSDECO_BACKPLANE"] = f"nats://127.0.0.1:{broker_port}"
    # The broker is in a session of its own, where no Ctrl-C ends it before the servers.
    with subprocess.Popen(nats, stderr=subprocess.DEVNULL, start_new_session=True) as broker:
        servers = [subprocess.Popen([*server, str(each)]) for each in (port, port and port + 1)]

        def stop(number: int, frame: object) -> None:
            for each in servers:
                each.terminate()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        status = max([each.wait() for each in servers])
        broker.terminate()
    sys.exit(status)


if __name__ == "__main__":
    main()
