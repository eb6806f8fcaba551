"""The ASGI app without a framework, on granian with one worker."""

from granian.constants import Interfaces, Loops
from granian.log import LogLevels
from granian.server import Server

from benchmarks.peers.common import HOST, parse_options

if __name__ == "__main__":
    Server(
        "benchmarks.peers.bare:app",
        address=HOST,
        port=parse_options().port,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        log_level=LogLevels.warning,
    ).serve()
