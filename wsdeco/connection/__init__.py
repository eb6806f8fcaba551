"""One connection from its admission to exactly one `on_disconnect`.

Entered by the endpoints of `routing`.
"""
