"""wsdeco with three hooks, served by `run()`: uvicorn with wsdeco's own HTTP and WebSocket classes."""

from benchmarks.peers.common import HOST, parse_options
from benchmarks.peers.wsdeco_app import echo_app

if __name__ == "__main__":
    options = parse_options()
    echo_app(options).run(HOST, options.port, access_log=False)
