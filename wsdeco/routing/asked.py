"""What a command line asks a server to serve: the app, and not what the app has been given."""

from __future__ import annotations

import sys
from typing import Final

from wsdeco.reasons import ServerError

__all__ = ["refuse_as_app"]

_MAIN: Final = frozenset({"__main__", "__mp_main__"})
"""What the module of a script is called, which no command line imports."""


def refuse_as_app(target: object, app: object) -> None:
    """Refuse to register what the command line of this process names as the app to serve, as in `uvicorn good:Echo`.

    A server would call a handler class, or a function of `route`, as if it were an ASGI app, and answer 500 to
    everybody.

    Args:
        target: What is about to be registered.
        app: The app that serves it.

    Raises:
        ServerError: The command line names it.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    # Every server is told by an argument of this form, and those of its workers are the same.
    if f"{module}:{name}" in sys.argv[1:] and module not in _MAIN:
        raise ServerError(
            f"{name!r} of {module} is what an app serves, and no app itself: write {_name_of(app, str(module))} in its "
            "place"
        )


def _name_of(app: object, module: str) -> str:
    names = (name for name, value in list(vars(sys.modules[module]).items()) if value is app)
    name = next(names, None)
    return f"the App that has it, such as {module}:ws," if name is None else f"{module}:{name}"
