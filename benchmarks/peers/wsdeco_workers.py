"""wsdeco in several processes, as many as `WORKERS` in the environment says; each answers with its process id."""

import os

from benchmarks.peers.common import HOST, parse_options
from wsdeco import App

app = App()


@app.handler("/ws", ping_interval=None)
class Process:
    async def on_message(self, _text: str) -> str:
        return str(os.getpid())


if __name__ == "__main__":
    app.run(HOST, parse_options().port, workers=int(os.environ["WORKERS"]), access_log=False, log_level="warning")
