"""The skill for coding agents: it is in the package, and what it tells to write runs."""

import importlib.util
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Final

import pytest
from fastapi import FastAPI

import wsdeco
from tests.support.checkout import CHECKOUT
from tests.support.snippets import Block, blocks, check_types, import_as_pasted, run_tests, write_files
from wsdeco import App
from wsdeco.testing import HandshakeRefused, connect

SKILL: Final = CHECKOUT / "wsdeco" / ".agents" / "skills" / "wsdeco" / "SKILL.md"
SNIPPETS: Final = {each.file: each for each in blocks(SKILL, "python")}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return write_files(tmp_path, list(SNIPPETS.values()))


@pytest.fixture
def ws(monkeypatch: pytest.MonkeyPatch) -> App:
    app = App()
    monkeypatch.setattr(wsdeco, "ws", app)
    return app


def test_it_says_what_it_is_for() -> None:
    text = SKILL.read_text("utf-8")
    assert re.match(r"---\nname: wsdeco\ndescription: \S.{50,1000}\n---\n", text) is not None
    assert len(text.splitlines()) <= 200
    assert list(SNIPPETS) == ["chat.py", "answers.py", "signed_in.py", "test_chat.py"]


def test_whoever_has_the_package_finds_it() -> None:
    assert resources.files("wsdeco").joinpath(".agents", "skills", "wsdeco", "SKILL.md").is_file()


@pytest.mark.usefixtures("ws")
@pytest.mark.parametrize("snippet", SNIPPETS.values(), ids=lambda each: each.file)
def test_each_snippet_can_be_imported(snippet: Block, directory: Path) -> None:
    import_as_pasted(directory, snippet)


def test_its_test_passes(directory: Path) -> None:
    assert "1 passed" in run_tests(directory, "test_chat.py")


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is a part of the extra dev")
def test_its_snippets_have_the_types_they_say(directory: Path) -> None:
    check_types(directory, *SNIPPETS)


async def test_its_answers_can_be_stopped(directory: Path, ws: App) -> None:
    import_as_pasted(directory, SNIPPETS["answers.py"])
    async with connect(ws, "/answers") as client:
        await client.send_json({"type": "Ask", "prompt": "two words"})
        assert [await client.receive_json() for _ in range(2)] == [{"text": "two"}, {"text": "words"}]
        await client.send_json({"type": "Stop"})
        await client.send("{}")
        assert (await client.receive_json())["code"] == "invalid"


@pytest.mark.usefixtures("ws")
async def test_its_refusal_is_one_in_fastapi_as_well(directory: Path) -> None:
    app = import_as_pasted(directory, SNIPPETS["signed_in.py"]).app
    assert isinstance(app, FastAPI)
    for path in ("/live/private", "/upper"):
        with pytest.raises(HandshakeRefused, match="401"):
            await connect(app, path).__aenter__()
        async with connect(app, path, headers={"Authorization": "Bearer secret"}) as client:
            await client.send("hello")
            await client.expect("HELLO")
