"""Finding an `App` by what is written on a command line, or finding the way back to one from another process."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final, cast

from wsdeco.reasons import ServerError
from wsdeco.routing.application import Application
from wsdeco.server.orphans import is_worker

__all__ = ["Reference", "describe_failure", "find", "is_frozen", "is_loading", "loading", "reference_to"]

_IMPORTING: Final = (importlib.__file__, "<frozen importlib")
"""How the names of files begin in whose frames a module is being imported."""

_loads = 0
_loaded = False


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an app is found.

    Attributes:
        module: The dotted name of a module; `"__main__"` is the script that runs, in its worker processes as well.
        name: What the app is called there; `None` for the default app, once the module is imported.
    """

    module: str
    name: str | None

    def load(self) -> Application:
        """Import the module, and return the app.

        Raises:
            ServerError: It is not there.
        """
        with loading():
            module = importlib.import_module(self.module)
        return _default_app() if self.name is None else _named(module, self.name, self.module)


@contextmanager
def loading() -> Generator[None]:
    """Have `App.run` do nothing in the block, since the app is being imported for somebody who serves it."""
    global _loads, _loaded  # noqa: PLW0603 - one process imports and serves
    _loads += 1
    try:
        yield
    finally:
        _loads -= 1
        _loaded = True


def is_loading() -> bool:
    """Return whether an app is being imported; a worker process begins with the import of the script it is made of."""
    return _loads > 0 or (not _loaded and is_worker())


def is_frozen() -> bool:
    """Return whether the script and its modules are packed into a program, by PyInstaller or its like."""
    return bool(getattr(sys, "frozen", False))


def find(target: str) -> tuple[Application, Reference]:
    """Return the app that `target` means, and where other processes find it.

    Args:
        target: `app.py`, `package.module`, or either with the name of the app behind a colon. The folder of a file, or
            the one above its packages, becomes part of `sys.path`; for a module that is the current one.

    Raises:
        ServerError: There is none, or more than one. What the import of the module itself raises is left as it is.
    """
    place, _, name = target.rpartition(":")
    if not place or not all(part.isidentifier() for part in name.split(".")):
        place, name = target, ""
    is_file = place.endswith(".py") or Path(place).name != place
    module = _import_file(Path(place)) if is_file else _import_named(place, target)
    reference = Reference(module.__name__, name) if name else _only_app(module, place)
    return reference.load(), reference


def reference_to(app: Application) -> Reference:
    """Return where another process finds `app`, which a script of this one serves.

    Raises:
        ServerError: It finds it nowhere.
    """
    main = sys.modules["__main__"]
    has_script = is_frozen() or Path(getattr(main, "__file__", None) or "<stdin>").is_file()
    if main.__spec__ is None and not has_script:
        raise ServerError(
            "worker processes begin by importing the script, and there is none here: write the app into a file, "
            "app.py for instance, and `wsdeco run app.py --workers 4` in a shell"
        )
    # `python -m package` runs package/__main__.py, which worker processes do not import by themselves.
    main_name = (
        main.__spec__.name if main.__spec__ is not None and main.__spec__.name.endswith("__main__") else "__main__"
    )
    if app is _default_app():
        return Reference(main_name, None)
    others = [module for name, module in sys.modules.copy().items() if name.partition(".")[0] != "wsdeco"]
    for module in (main, *others):
        for name, value in _globals(module):
            if value is app:
                return Reference(main_name if module is main else module.__name__, name)
    raise ServerError(
        "worker processes find the app by its name, and it has none: write `app = App()` at the top level of a module, "
        "outside of functions"
    )


def describe_failure(exc: Exception, place: str) -> str:
    """Return why an app could not be found: one line, behind the traceback of what the module itself has raised."""
    if isinstance(exc, ServerError):
        return str(exc)
    frames = exc.__traceback__
    while frames is not None and not _imports(frames):
        frames = frames.tb_next
    while frames is not None and _imports(frames):
        frames = frames.tb_next
    traced = "".join(traceback.format_exception(type(exc), exc, frames))
    return f"{traced}{place} cannot be imported: {type(exc).__name__}: {exc}"


def _imports(frame: TracebackType) -> bool:
    return frame.tb_frame.f_code.co_filename.startswith(_IMPORTING)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ServerError(f"there is no file {str(path)!r}: write the path of a Python file, or the name of a module")
    file = path.resolve()
    folder, names = file.parent, [file.stem]
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    _add_to_path(folder)
    dotted = ".".join(names)
    if "." in file.stem:
        raise ServerError(f"{file.name} cannot be imported, since a dot separates modules: rename it")
    with loading():
        module = importlib.import_module(dotted)
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != file:
        raise ServerError(
            f"{file.name} cannot be imported, since there is another module {dotted!r} ({found or 'built in'}): "
            "rename the file"
        )
    return module


def _import_named(dotted: str, target: str) -> ModuleType:
    _add_to_path(Path.cwd())
    if not all(part.isidentifier() for part in dotted.split(".")):
        raise ServerError(
            f"{target!r} is neither a file nor a module: write app.py, package.module, or package.module:ws"
        )
    try:
        with loading():
            return importlib.import_module(dotted)
    except ModuleNotFoundError as exc:
        # A module that the app itself fails to import is for its author to see.
        if exc.name is None or not f"{dotted}.".startswith(f"{exc.name}."):
            raise
    raise ServerError(f"there is no module {dotted!r} in {Path.cwd()} or where Python looks: is this the right folder?")


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _only_app(module: ModuleType, place: str) -> Reference:
    apps = {id(value): name for name, value in _globals(module) if isinstance(value, Application) and value.app.routes}
    names = sorted(apps.values())
    if len(names) > 1:
        raise ServerError(f"{place} has more than one app, {', '.join(names)}: write {place}:{names[0]}, for instance")
    if names:
        return Reference(module.__name__, names[0])
    ws = _default_app()
    if ws.app.routes:
        return Reference(module.__name__, None)
    raise ServerError(
        f"{place} has no app with a handler: write `from wsdeco import ws`, and decorate a class with "
        "@ws.handler('/ws')"
    )


def _default_app() -> Application:
    # It is made above, where the decorators are, and it is there as soon as anything of wsdeco is imported.
    return cast(Application, sys.modules["wsdeco"].ws)


def _named(module: ModuleType, name: str, place: str) -> Application:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    if isinstance(value, Application):
        return value
    names = sorted({each for each, found in _globals(module) if isinstance(found, Application)})
    found = "is not there" if value is None else f"is a {type(value).__name__} and no App of wsdeco"
    hint = f"it has {', '.join(names)}" if names else "it has no App at its top level"
    if len(names) == 1 and place != "__main__":
        hint += f", so write {place}:{names[0]}"
    if place == "__main__":
        hint += (
            '; worker processes import the script anew, without what stands under `if __name__ == "__main__":`, so '
            f"write `{name} = App()` at its top level"
        )
    raise ServerError(f"{name!r} of {place} {found}: {hint}")


def _globals(module: ModuleType) -> Iterator[tuple[str, object]]:
    # A copy, as another thread may import at this moment.
    return iter(list(getattr(module, "__dict__", {}).items()))
