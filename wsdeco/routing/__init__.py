"""From a path to what answers it: the ASGI application, its registry and its endpoints.

Entered by `app` and by servers.
"""
