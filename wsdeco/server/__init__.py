"""One process that serves: its sockets, its signals, its end.

Entered by `launch`, the command line and `workers`.
"""
