"""The command line of a server names a handler in the place of its app."""

import importlib
import sys
from pathlib import Path
from typing import Final

import pytest

from wsdeco import App, ServerError

MODULE: Final = """
from wsdeco import App

chat = App()


class Holder:
    app = App()


@{decorator}("/ws")
{definition}
"""

ECHO: Final = "class Echo:\n    async def on_message(self, text):\n        return text"
HOME: Final = "async def home():\n    return None"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "good", raising=False)
    return tmp_path / "good.py"


@pytest.mark.parametrize(
    ("decorator", "definition", "asked", "line"),
    [
        (
            "chat.handler",
            ECHO,
            "good:Echo",
            "'Echo' of good is what an app serves, and no app itself: write good:chat in its place",
        ),
        (
            "chat.route",
            HOME,
            "good:home",
            "'home' of good is what an app serves, and no app itself: write good:chat in its place",
        ),
        (
            "Holder.app.handler",
            ECHO,
            "good:Echo",
            (
                "'Echo' of good is what an app serves, and no app itself: write the App that has it, such as good:ws, "
                "in its place"
            ),
        ),
    ],
)
def test_what_an_app_serves_is_refused_as_the_app(
    module: Path, decorator: str, definition: str, asked: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.write_text(MODULE.format(decorator=decorator, definition=definition), "utf-8")
    monkeypatch.setattr(sys, "argv", ["uvicorn", asked])
    with pytest.raises(ServerError) as caught:
        importlib.import_module("good")
    assert str(caught.value) == line


@pytest.mark.parametrize("asked", ["good:chat", "good:Ech", "other:Echo"])
def test_all_else_may_be_asked_for(module: Path, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module.write_text(MODULE.format(decorator="chat.handler", definition=ECHO), "utf-8")
    monkeypatch.setattr(sys, "argv", ["uvicorn", asked])
    assert isinstance(importlib.import_module("good").chat, App)
