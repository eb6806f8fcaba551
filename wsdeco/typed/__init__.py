"""Messages with types: what the annotations of `on_message` ask for, on msgspec and pydantic.

Optional (`wsdeco[typed]`). Entered by `definition`, from one function, for a handler class that needs it.
"""
