"""Blocks of code in documents, as files that can be run."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tests.support.checkout import CHECKOUT

__all__ = ["Block", "blocks", "check_types", "import_as_pasted", "run_tests", "write_files"]

PATIENCE = 110.0
"""Seconds that a program may take."""


class Block(NamedTuple):
    """A block of code, and the name of its file, which its first line may say."""

    code: str
    file: str


def blocks(document: Path, language: str) -> list[Block]:
    """Return the blocks of a language, in the order of the document."""
    text = document.read_text("utf-8")
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    named = [re.match(r"# (\S+\.py)\n", code) for code in found]
    names = [f"snippet_{number}.py" if name is None else name[1] for number, name in enumerate(named)]
    return [Block(code, name) for code, name in zip(found, names, strict=True)]


def write_files(directory: Path, snippets: list[Block]) -> Path:
    """Write the blocks beside each other; return where."""
    for each in snippets:
        (directory / each.file).write_text(each.code, "utf-8")
    return directory


def import_as_pasted(directory: Path, snippet: Block) -> ModuleType:
    """Import a file as a module that nothing else has imported.

    Its directory has to be on the path, if it imports a file beside it.
    """
    before = set(sys.modules)
    name = f"pasted_{snippet.file.removesuffix('.py')}"
    spec = importlib.util.spec_from_file_location(name, directory / snippet.file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        for each in set(sys.modules) - before:
            if str(getattr(sys.modules[each], "__file__", "")).startswith(str(directory)):
                del sys.modules[each]
    return module


def run_tests(directory: Path, file: str) -> str:
    """Run the tests of a file in a process of their own; return what pytest says, if they pass."""
    return _output(directory, "pytest", "-q", "-p", "no:cacheprovider", file, PYTEST_ADDOPTS="")


def check_types(directory: Path, *files: str) -> None:
    """Fail unless mypy is content with the files under `--strict`."""
    _output(directory, "mypy", "--strict", *files, MYPYPATH=str(CHECKOUT), MYPY_CACHE_DIR=str(directory / "cache"))


def _output(directory: Path, *command: str, **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
