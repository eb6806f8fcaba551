"""Backplanes: what carries rooms from one process to others, over processes and machines.

- `interface`: what a backplane is, for the rooms that use it and for those who write one; `checks` tries it out, and
  `memory` is one for tests.
- `urls`: which one a URL means.
- `broker`: what those have in common that use a broker; `nats` and `redis` are its two links, and `envelope` is how a
  message travels.
"""
