"""The servers that are measured, each an echo of text at `/ws`, each a process of its own.

`python -m benchmarks.peers.NAME --port N [--compression]`. What they have in common: 127.0.0.1 only, uvloop for all
that run on asyncio, no access log, no keepalive pings (a ping that happens to fall into a measurement is noise),
and permessage-deflate only with `--compression`.

Libraries that the project itself does not depend on are loaded by name, as `Any`: type checkers then say the same
whether they are installed or not.
"""
