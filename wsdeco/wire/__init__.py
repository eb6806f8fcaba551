"""Bytes in, bytes out, without an event loop: frames, compression, the handshake.

Entered by `transport` and `channels`.
"""
