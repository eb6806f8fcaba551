"""The classes that uvicorn loads: asyncio protocols that own the socket.

Entered by their dotted names alone, `wsdeco.protocol` and `wsdeco.http`.
"""
