"""What a handler class must be, checked once when it is defined.

Entered by `routing`, and by `connection` for the hooks it calls.
"""
