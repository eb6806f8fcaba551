"""The AsyncAPI document of an app: what stands in it, and that the official schema and parser take it."""

import json
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import jsonschema
import msgspec
import pytest
from pydantic import BaseModel

from tests.unit.cli.test_cli import fresh_imports, refusal, write
from wsdeco import App, WebSocketUpgrade
from wsdeco.describe.document import asyncapi
from wsdeco.routing.application import registry_of

__all__ = ["fresh_imports"]

PARSE: Final = """
const {Parser} = require("@asyncapi/parser");
new Parser().parse(require("fs").readFileSync(0, "utf8")).then(({document, diagnostics}) => {
  console.log(JSON.stringify(diagnostics));
  process.exit(document ? 0 : 1);
});
"""


def described(app: App, server: str | None = None) -> dict[str, Any]:
    document = asyncapi(registry_of(app), server)
    # What it holds has a form in JSON.
    return dict(json.loads(json.dumps(document)))


def documented_app() -> App:
    app = App()

    @app.handler("/ws", idle_timeout=60, max_connection_duration=3600, max_message_size=100)
    class Echo:
        """Sends back what it gets.

        And nothing else.
        """

        async def on_message(self, data: str | bytes) -> str | bytes:
            """Say something."""
            return data

    @app.handler(
        "/rooms/{room}/{n:int}", subprotocols=["chat.v2"], max_connections=9, allowed_origins="*", slow_consumer="drop"
    )
    class Room:
        async def on_message(self, text: str) -> None: ...

    @app.handler(
        "/rooms/{room}/{n}",
        send_timeout=None,
        slow_consumer="drop",
        message_rate="20/s",
        over_rate="close",
        first_message_timeout=5,
        max_connections_per_client=3,
    )
    class Watch:
        async def on_connect(self, addr: object, sink: object) -> None: ...

    @app.handler("/")
    class Bytes:
        async def on_message(self, data: bytes) -> None: ...

    @app.route("/both")
    def both(upgrade: WebSocketUpgrade | None) -> None:
        """A page, or a connection."""

    @app.route("/page")
    def page() -> None: ...

    for unused in (Echo, Room, Watch, Bytes, both, page):
        assert unused is not None
    return app


@dataclass
class Point:
    x: float
    y: float = 0.0


@dataclass
class Move:
    """One step."""

    to: Point
    piece: Literal["king", "pawn"]
    fast: bool = False
    note: str | None = None


@dataclass
class Leave:
    why: str = "tired"


class Joined(BaseModel):
    name: str
    at: Literal["table", "window"] | None = None


class Named(msgspec.Struct, tag=True):
    pair: tuple[int, str]


class OwnCodec:
    def encode(self, message: Any) -> str | bytes:
        return repr(message)

    def decode(self, frame: str | bytes) -> Any:
        return frame


class Game:
    """Moves, and who takes part."""

    async def on_message(self, message: Move | Leave | bytes) -> Joined | Named:
        return Joined(name=repr(message))


class One:
    async def on_message(self, message: Move) -> list[int]:
        return [1]


class Own:
    async def on_message(self, message: Joined) -> None: ...


def other_point() -> type:
    @dataclass
    class Point:
        inner: str

    return Point


OTHER: Final[Any] = other_point()


@dataclass
class Holder:
    many: "list[OTHER]"  # pyright: ignore[reportInvalidTypeForm]


class Other:
    async def on_message(self, message: Holder) -> str:
        return "done"


def typed_app() -> App:
    app = App(docs="/docs")
    app.add("/game", Game)
    app.add("/one", One, codec="msgpack")
    app.add("/own", Own, codec=OwnCodec())
    app.add("/other", Other)
    return app


def test_each_path_is_a_channel_with_an_operation_for_each_direction() -> None:
    document = described(documented_app(), "wss://example.com/live")
    assert document["asyncapi"] == "3.1.0"
    assert document["info"]["title"] == "tests.unit.describe.test_describe"
    assert document["servers"] == {"server": {"host": "example.com", "protocol": "wss", "pathname": "/live"}}
    channels = document["channels"]
    assert {key: channel["address"] for key, channel in channels.items()} == {
        "ws": "/ws",
        "rooms_room_n": "/rooms/{room}/{n}",
        "rooms_room_n_2": "/rooms/{room}/{n}",
        "root": "/",
        "both": "/both",
    }
    assert [channel["x-path"] for channel in channels.values()][1] == "/rooms/{room}/{n:int}"
    assert sorted(document["operations"]) == [
        "receive_both",
        "receive_rooms_room_n",
        "receive_root",
        "receive_ws",
        "send_both",
        "send_rooms_room_n",
        "send_rooms_room_n_2",
        "send_root",
        "send_ws",
    ]
    assert document["operations"]["receive_root"] == {
        "action": "receive",
        "channel": {"$ref": "#/channels/root"},
        "messages": [{"$ref": "#/channels/root/messages/binary"}],
    }
    assert channels["root"]["messages"]["binary"] == {
        "name": "binary",
        "contentType": "application/octet-stream",
        "payload": {"type": "string", "format": "binary"},
    }


def test_docstrings_limits_parameters_and_codes_stand_in_it() -> None:
    document = described(documented_app())
    channels = document["channels"]
    assert "servers" not in document
    assert document["info"]["description"].startswith("The AsyncAPI document")
    assert channels["ws"]["description"] == "Sends back what it gets.\n\nAnd nothing else."
    assert document["operations"]["receive_ws"]["description"] == "Say something."
    assert channels["both"]["description"] == "A page, or a connection."
    assert "description" not in channels["root"]
    assert channels["rooms_room_n"]["parameters"] == {"room": {"x-type": "str"}, "n": {"x-type": "int"}}
    binding = channels["rooms_room_n"]["bindings"]["ws"]
    assert binding["headers"]["properties"] == {"Sec-WebSocket-Protocol": {"type": "string", "enum": ["chat.v2"]}}
    assert channels["ws"]["x-limits"]["idle_timeout"] == 60
    assert channels["ws"]["x-close-codes"]["1001"] == "60 s without a message or 3600 s of connection"
    assert channels["ws"]["x-close-codes"]["1009"] == "a message of more than 100 bytes"
    assert "1013" in channels["rooms_room_n"]["x-close-codes"]
    assert "1013" not in channels["rooms_room_n_2"]["x-close-codes"]
    assert channels["rooms_room_n_2"]["x-close-codes"]["1008"] == "more than 20/s or no message for 5 s"
    assert channels["rooms_room_n"]["x-refusals"].keys() == {"500", "503"}
    assert channels["rooms_room_n_2"]["x-refusals"].keys() == {"403", "429", "500", "503"}
    assert "x-limits" not in channels["both"]


def test_what_nobody_wrote_is_no_description() -> None:
    app = App()

    @app.handler("/a")
    @dataclass
    class Counter:
        count: int = 0

        async def on_message(self, text: str) -> None: ...

    @app.handler("/b")
    class Child(Counter): ...

    channels = described(app)["channels"]
    assert [("description" in channel) for channel in channels.values()] == [False, False]
    assert described(App()) | {"info": None} == {
        "asyncapi": "3.1.0",
        "info": None,
        "defaultContentType": "application/json",
        "channels": {},
        "operations": {},
    }


def test_an_abstract_class_says_what_the_handlers_of_a_factory_take() -> None:
    class Shape(ABC):
        @abstractmethod
        async def on_message(self, move: Move) -> Leave: ...

    class Round(Shape):
        async def on_message(self, move: Move) -> Leave:
            return Leave()

    app = App()
    app.add("/shapes", Shape, factory=lambda headers: Round())
    assert set(described(app)["components"]["schemas"]) == {"Point", "Move", "Leave"}


def test_messages_with_types_have_their_schema() -> None:
    document = described(typed_app())
    game = document["channels"]["game"]["messages"]
    assert list(game) == ["Move", "Leave", "binary", "Joined", "Named"]
    assert game["Move"]["contentType"] == "application/json"
    assert game["Move"]["description"] == "One step."
    # The tag that tells it from the others stands in the schema, although it is no field of the class.
    assert game["Move"]["payload"]["properties"]["type"] == {"const": "Move"}
    assert game["Move"]["payload"]["required"] == ["type", "to", "piece"]
    assert game["Named"]["payload"] == {"$ref": "#/components/schemas/Named"}
    assert [each["$ref"] for each in document["operations"]["receive_game"]["messages"]] == [
        "#/channels/game/messages/Move",
        "#/channels/game/messages/Leave",
        "#/channels/game/messages/binary",
    ]
    one = document["channels"]["one"]["messages"]
    assert one["Move"]["payload"] == {"$ref": "#/components/schemas/Move"}
    assert one["Move"]["contentType"] == "application/msgpack"
    assert one["list"]["payload"] == {"type": "array", "items": {"type": "integer"}}
    own = document["channels"]["own"]
    assert own["messages"]["Joined"]["contentType"] == "application/octet-stream"
    assert own["x-limits"]["codec"] == "OwnCodec"
    assert "text" in own["messages"]


def test_two_classes_of_one_name_keep_schemas_of_their_own() -> None:
    document = described(typed_app())
    schemas = document["components"]["schemas"]
    assert schemas["Point"]["properties"].keys() == {"x", "y"}
    assert schemas["Point_2"]["properties"].keys() == {"inner"}
    holder = document["channels"]["other"]["messages"]["Holder"]["payload"]
    assert schemas[holder["$ref"].rpartition("/")[2]]["properties"] == {
        "many": {"type": "array", "items": {"$ref": "#/components/schemas/Point_2"}}
    }


# On the command line.


SOURCE: Final = '''
"""Echoes."""

from wsdeco import App

__version__ = "1.2.3"
app = App()

@app.handler("/ws")
class Echo:
    async def on_message(self, text): return text
'''


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    write("app.py", SOURCE)
    assert refusal("asyncapi", "app.py", "--server", "ws://localhost:8000/") == (0, "")
    document = json.loads(capsys.readouterr().out)
    assert document["info"] == {"title": "app", "version": "1.2.3", "description": "Echoes."}
    assert document["servers"] == {"server": {"host": "localhost:8000", "protocol": "ws"}}
    assert list(document["channels"]) == ["ws"]
    assert refusal("asyncapi", "none.py")[0] == 1


def test_a_script_is_called_by_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()

    class Echo:
        async def on_message(self, text: str) -> None: ...

    Echo.__module__ = "__main__"
    app.add("/ws", Echo)
    monkeypatch.setattr("__main__.__file__", "/somewhere/chat_server.py", raising=False)
    assert described(app)["info"]["title"] == "chat_server"


# What others say of it.


@pytest.fixture(scope="module")
def specification(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the official schema and parser, where npm can."""
    folder = tmp_path_factory.mktemp("asyncapi")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing, which installs the official schema of AsyncAPI")
    packages = ("@asyncapi/specs@6", "@asyncapi/parser@3")
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages]
    ended = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False, timeout=110)
    if ended.returncode:
        failed = f"npm cannot install {packages}: {ended.stderr[-500:]}"
        if os.environ.get("CI"):
            pytest.fail(failed)
        pytest.skip(failed)
    return folder


def test_the_official_schema_and_parser_take_it(specification: Path) -> None:
    schema = json.loads((specification / "node_modules/@asyncapi/specs/schemas/3.1.0.json").read_text("utf-8"))
    for document in (
        described(documented_app(), "ws://127.0.0.1:8000"),
        described(typed_app()),
        described(App()),
    ):
        jsonschema.validate(document, schema)
        parsed = subprocess.run(
            ["node", "-e", PARSE],  # noqa: S607 - where npm is, node is
            cwd=specification,
            input=json.dumps(document),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert parsed.returncode == 0, parsed.stdout + parsed.stderr
        assert json.loads(parsed.stdout) == []
