"""The HTTP class that `run` brings along, by its public name: `uvicorn app:ws --http wsdeco.http:HttpProtocol`."""

import asyncio
from importlib.util import find_spec

from wsdeco.transport.h11_impl import BoundedH11Protocol

__all__ = ["BoundedH11Protocol", "HttpProtocol"]

HttpProtocol: type[asyncio.Protocol] = BoundedH11Protocol
"""uvicorn's class on httptools if that is installed, else the one on h11, with bounds."""

if find_spec("httptools") is not None:
    from wsdeco.transport.httptools_impl import BoundedHttpToolsProtocol

    HttpProtocol = BoundedHttpToolsProtocol
