"""What is installed: metadata, typing marker, and what `import wsdeco` costs."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from typing import Any, Final

import pytest

from tests.support.checkout import CHECKOUT

ONLY_WHEN_USED: Final = {"fastapi", "granian", "httpx", "hypercorn", "nats", "pytest", "redis", "uvicorn"}
"""Servers, and packages of the tests, that an application under another server may not have to load."""


@pytest.fixture
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def test_the_installed_version_is_the_one_of_the_checkout(project: dict[str, Any]) -> None:
    assert metadata.version("wsdeco") == project["version"]


def test_the_package_is_typed() -> None:
    assert resources.files("wsdeco").joinpath("py.typed").is_file()


def test_every_dependency_has_a_lower_bound_and_no_upper_one(project: dict[str, Any]) -> None:
    extras = (each for extra in project["optional-dependencies"].values() for each in extra)
    requirements = {each.partition(";")[0].strip() for each in (*project["dependencies"], *extras)}
    for requirement in {each for each in requirements if not each.startswith("wsdeco[")}:
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?>=[0-9.]+", requirement) is not None, requirement


def test_the_changelog_has_a_place_for_what_is_not_released_yet() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (CHECKOUT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[:1] == ["Unreleased"]


@pytest.mark.parametrize("module", ["wsdeco", "wsdeco.testing"])
def test_importing_loads_no_server(module: str) -> None:
    code = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60)
    assert ONLY_WHEN_USED & set(result.stdout.split()) == set()
