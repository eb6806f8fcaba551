"""Several processes that serve one app on one port.

Entered by `launch`, if `workers` are asked for.
"""
