"""The build hook that compiles the hot modules with mypyc, if `WSDECO_COMPILE` is set; it is in no wheel.

`hatch-mypyc` does the same with less code, but it moves `pyproject.toml` away while it works, leaves the extensions in
the checkout, which would be taken for the source from then on, and puts a module of its own beside the package. Here
everything happens in a temporary folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = ["CompilingHook"]

_SWITCH: Final = "WSDECO_COMPILE"

_MODULES: Final = (
    "channels/base",
    "rooms/members",
    "transport/keepalive",
    "transport/outgoing",
    "transport/protocol",
    "wire/deflate",
    "wire/gathering",
    "wire/incoming",
    "wire/outgoing",
)
"""The modules that each message and each broadcast passes, without those that have coroutines of their own.

A compiled coroutine has no name, is not closed when it is thrown away, hands an exception on in a form that Python 3.12
and newer warn of, and gains little: the lifecycle was 3 % faster with it.
"""

_GROUP: Final = "wsdeco._compiled"
"""What holds the code of all of them, so that they call each other as C does; `__mypyc` is added to its name."""

_COMPILER: Final = ("mypy[mypyc]>=2.4", "setuptools>=70")


class CompilingHook(BuildHookInterface[Any]):
    """Puts an extension beside each of the hot modules of a wheel."""

    _folder: TemporaryDirectory[str] | None = None

    def _compiles(self) -> bool:
        return os.environ.get(_SWITCH, "0") not in {"", "0"}

    def dependencies(self) -> list[str]:
        """Return what has to be installed for the build."""
        return list(_COMPILER) if self._compiles() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the wheel take what comes out; a wheel for an editable installation stays pure Python.

        Raises:
            RuntimeError: The compiler has failed, with what it said.
        """
        if version != "standard" or not self._compiles():
            return
        self._folder = TemporaryDirectory()
        folder = Path(self._folder.name).resolve()
        shutil.copytree(Path(self.root) / "wsdeco", folder / "wsdeco", ignore=shutil.ignore_patterns("__pycache__"))
        # `-P`, or `http.py` beside this file would be taken for the one of the standard library.
        result = subprocess.run(  # noqa: S603 - the interpreter that builds
            [sys.executable, "-P", __file__],
            check=False,
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if result.returncode != 0:
            raise RuntimeError(f"mypyc has failed: {result.stdout}")
        build_data["infer_tag"] = True
        build_data["pure_python"] = False
        for path in (folder / "out").rglob("*"):
            if path.is_file():
                build_data["force_include"][str(path)] = path.relative_to(folder / "out").as_posix()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder."""
        if self._folder is not None:
            self._folder.cleanup()


def _compile() -> None:
    # Of the versions of mypy and setuptools in the environment of the build, which need not be those of the checkout.
    setup: Any = import_module("setuptools").setup
    mypycify: Any = import_module("mypyc.build").mypycify
    names = [f"wsdeco/{name}.py" for name in _MODULES]
    # Not by the types of what wsdeco imports: that is no slower, and reading them takes longer than all else.
    options = ["--config-file=", "--cache-dir=cache", "--no-site-packages"]
    # What mypy takes for unreachable is compiled to a crash, so it must be an error.
    options += ["--follow-imports=silent", "--ignore-missing-imports", "--warn-unreachable"]
    extensions = mypycify([*options, *names], group_name=_GROUP, target_dir="c", debug_level="0")
    setup(
        name="wsdeco",
        packages=[],
        ext_modules=extensions,
        script_args=["build_ext", "--build-lib", "out", "--build-temp", "temp"],
    )


if __name__ == "__main__":
    _compile()
