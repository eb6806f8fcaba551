"""Several processes that serve one app on one port.

Entered by `launch`, where `workers` are asked for.
"""
