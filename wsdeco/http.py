"""The public name of the HTTP class that `run` brings along: `uvicorn app:ws --http wsdeco.http:HttpProtocol`."""

from wsdeco.transport.http import BoundedH11Protocol, HttpProtocol

__all__ = ["BoundedH11Protocol", "HttpProtocol"]
