"""What an operator reads: the access log, numbers, their Prometheus text and health.

Entered by `app` and `launch`, if one of them is asked for. It hangs on the observers of `channels`.
"""
