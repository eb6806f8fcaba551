"""wsdeco with three hooks, on uvicorn with wsdeco's own WebSocket protocol class."""

from benchmarks.peers.common import parse_options, run_uvicorn
from benchmarks.peers.wsdeco_app import echo_app

if __name__ == "__main__":
    options = parse_options()
    run_uvicorn(echo_app(options), options, ws="wsdeco.protocol:WebSocketProtocol")
