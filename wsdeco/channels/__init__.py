"""The duplex pipe of one connection, over ASGI or direct, and the sink on top of it.

Entered by `connection`, `rooms` and `routing`.
"""
