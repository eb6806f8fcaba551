"""The ASGI app without a framework, on uvicorn with wsproto."""

from benchmarks.peers.bare import app
from benchmarks.peers.common import parse_options, run_uvicorn

if __name__ == "__main__":
    run_uvicorn(app, parse_options(), ws="wsproto")
