"""What carries rooms from one process to others, over processes and machines.

Entered by `routing` through `urls`, and by `rooms` through `interface`.
"""
