"""What PyInstaller asks for on its own, by the entry point `pyinstaller40`: the folder of the hook beside this file."""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Return the folder of what packs wsdeco into a program with all that it needs."""
    return [str(Path(__file__).parent)]
