"""Groups of connections that get the same messages.

Entered by `routing`; its members are channels.
"""
