"""Messages with types: what annotations ask for, in both directions, and what is done with what they do not."""

import asyncio
import contextlib
import enum
import json
import logging
import math
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, make_dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules.test_lifecycle import Served
from tests.support.recording import closing
from tests.support.stacks import Peer, Stack, soon, until
from tests.support.wire import Logged
from wsdeco import Address, App, Close, ConnectionClosed, HandlerError, Sink, WebSocketHandler
from wsdeco.describe.document import asyncapi
from wsdeco.routing.application import registry_of
from wsdeco.testing import connect
from wsdeco.typed.codecs import format_of
from wsdeco.typed.reader import Invalid, Reader
from wsdeco.typed.writer import Writer

# Every kind of class that a message may have.


@dataclass
class Say:
    text: str


@dataclass
class Join:
    room: str
    seats: list[int] = field(default_factory=list[int])


@dataclass
class Said:
    who: str
    text: str


@dataclass
class Order:
    id: UUID
    at: datetime


@dataclass
class Counted:
    text: str
    n: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = 0


class SayDict(TypedDict):
    type: Literal["Say"]
    text: str


class SayTuple(NamedTuple):
    text: str
    loud: bool = False


@attrs.define
class SayAttrs:
    text: str


class SayStruct(msgspec.Struct):
    text: str


class SayTagged(msgspec.Struct, tag="say", tag_field="kind"):
    text: str


class SayStrict(msgspec.Struct, forbid_unknown_fields=True):
    text: str


class SayModel(pydantic.BaseModel):
    text: str


class SayStrictModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    text: str


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog", "puppy"]
    name: str


class Measured(pydantic.BaseModel):
    value: float


class Deep(pydantic.BaseModel):
    parts: list[Cat]


Pet = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
Renamed = NewType("Renamed", Say)

KINDS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "dataclass": (Say, {"text": "hi"}, Say("hi")),
    "TypedDict": (SayDict, {"type": "Say", "text": "hi"}, {"type": "Say", "text": "hi"}),
    "NamedTuple": (SayTuple, {"text": "hi", "loud": False}, SayTuple("hi")),
    "attrs": (SayAttrs, {"text": "hi"}, SayAttrs("hi")),
    "Struct": (SayStruct, {"text": "hi"}, SayStruct("hi")),
    "tagged Struct": (SayTagged, {"kind": "say", "text": "hi"}, SayTagged("hi")),
    "strict Struct": (SayStrict, {"text": "hi"}, SayStrict("hi")),
    "pydantic": (SayModel, {"text": "hi"}, SayModel(text="hi")),
    "strict pydantic": (SayStrictModel, {"text": "hi"}, SayStrictModel(text="hi")),
    "NewType": (Renamed, {"text": "hi"}, Say("hi")),
}

CODECS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "json": (json.dumps, json.loads),
    "msgpack": (msgspec.msgpack.encode, msgspec.msgpack.decode),
}


class Lines:
    """A codec of the user's: JSON with a mark, in binary frames."""

    def encode(self, message: Any) -> bytes:
        return b"!" + json.dumps(message).encode()

    def decode(self, frame: str | bytes) -> Any:
        if not isinstance(frame, bytes) or not frame.startswith(b"!"):
            raise ValueError("no mark")
        return json.loads(frame[1:])


LINES = Lines()
CODECS["own"] = (LINES.encode, LINES.decode)


def codec_of(name: str) -> Any:
    return LINES if name == "own" else name


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_alone_is_read_and_written(name: str, codec: str) -> None:
    form, wire, value = KINDS[name]
    encode, decode = CODECS[codec]
    reader, writer = Reader(form, format_of(codec_of(codec))), Writer(form, format_of(codec_of(codec)))
    assert reader.read(encode(wire)) == (value, None)
    assert reader.read(encode(wire | {"id": 7})) == (value, 7)
    assert decode(writer.write(value)) == wire
    assert decode(writer.write(value, "a")) == {"id": "a"} | wire
    with pytest.raises(Invalid):
        reader.read(encode(wire | {"text": 1}))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_in_a_union_is_told_apart(name: str, codec: str) -> None:
    form, wire, value = KINDS[name]
    encode, decode = CODECS[codec]
    union = form | Join
    reader, writer = Reader(union, format_of(codec_of(codec))), Writer(union, format_of(codec_of(codec)))
    tag = {} if set(wire) & {"type", "kind"} else {"type": type(value).__name__}
    assert reader.read(encode(tag | wire)) == (value, None)
    assert reader.read(encode(tag | wire | {"id": 7})) == (value, 7)
    assert reader.read(encode({"type": "Join", "room": "x"})) == (Join("x"), None)
    assert decode(writer.write(value)) == tag | wire
    assert decode(writer.write(Join("x", [1]), 3)) == {"type": "Join", "id": 3, "room": "x", "seats": [1]}
    wrongs: list[Any] = [wire | {"type": "Other", "kind": "other"}, {"room": "x"}, [], 1, {**tag, **wire, "text": None}]
    for wrong in wrongs:
        with pytest.raises(Invalid):
            reader.read(encode(wrong))


@pytest.mark.parametrize("codec", CODECS)
def test_plain_values(codec: str) -> None:
    encode, decode = CODECS[codec]
    wire = format_of(codec_of(codec))
    plain: list[tuple[Any, Any]] = [(dict, {"a": 1}), (list, [1]), (Any, 5), (Any, None), (dict[str, int], {"a": 1})]
    for form, value in plain:
        assert Reader(form, wire).read(encode(value)) == (value, None)
        assert decode(Writer(form, wire).write(value)) == value
    assert Reader(list[Say], wire).read(encode([{"text": "x"}])) == ([Say("x")], None)
    assert Reader(list[SayModel], wire).read(encode([{"text": "x"}])) == ([SayModel(text="x")], None)
    assert decode(Writer(list[SayModel], wire).write([SayModel(text="x")])) == [{"text": "x"}]
    assert Reader(Any, wire).read(encode({"id": 1, "x": 2})) == ({"id": 1, "x": 2}, 1)
    mixed = Reader(Say | list[int], wire)
    assert mixed.read(encode([1, 2])) == ([1, 2], None)
    assert mixed.read(encode({"text": "x"})) == (Say("x"), None)
    with pytest.raises(Invalid):
        mixed.read(encode(["x"]))


def test_models_of_pydantic_keep_their_discriminator() -> None:
    wire = format_of("json")
    reader, writer = Reader(Pet, wire), Writer(Pet, wire)
    assert reader.read('{"kind":"puppy","name":"Rex"}') == (Dog(kind="puppy", name="Rex"), None)
    assert json.loads(writer.write(Cat(kind="cat", lives=9))) == {"kind": "cat", "lives": 9}
    with pytest.raises(Invalid) as caught:
        reader.read('{"kind":"fish"}')
    assert (caught.value.message, caught.value.path) == ("Expected one of `cat`, `dog`, `puppy`, got 'fish'", "$.kind")


def test_bytes_beside_messages_are_binary_frames_as_they_are() -> None:
    reader = Reader(Say | bytes, format_of("json"))
    assert reader.read(b"\x00") == (b"\x00", None)
    assert reader.read('{"text":"x"}') == (Say("x"), None)


def test_an_id_of_the_class_itself_stays() -> None:
    wire = format_of("json")
    text = '{"id":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","at":"2026-01-01T00:00:00"}'
    order, number = Reader(Order, wire).read(text)
    assert number == str(order.id)
    assert Writer(Order, wire).write(order, "other") == text
    assert Writer(dict, wire).write({"id": 1}, 2) == '{"id":1}'


@pytest.mark.parametrize("number", [None, True, 1.5, [1], {"a": 1}, "x" * 129])
def test_what_is_no_number_of_a_request_is_none(number: object) -> None:
    text = json.dumps({"id": number, "text": "x"})
    assert Reader(Say, format_of("json")).read(text) == (Say("x"), None)


def test_an_id_written_with_escapes_is_one() -> None:
    assert Reader(Say, format_of("json")).read('{"\\u0069d":4,"text":"x"}') == (Say("x"), 4)
    assert Reader(Say, format_of("json")).read('{"text":"\\u0069d"}') == (Say("id"), None)


def test_what_is_no_object_has_no_room_for_a_number() -> None:
    writer = Writer(list, format_of("json"))
    assert writer.write([1], 2) == "[1]"
    assert writer.write({}, 2) == '{"id":2}'
    assert writer.write("text", 2) == "text"
    assert Writer(list, format_of("msgpack")).write([1], 2) == msgspec.msgpack.encode([1])


def test_a_class_derived_from_one_in_the_union_has_its_tag() -> None:
    class Loud(Say):
        pass

    writer = Writer(Say | Join, format_of("json"))
    assert writer.write(Loud("x")) == '{"type":"Say","text":"x"}'
    assert writer.write({"a": 1}) == '{"a":1}'


# JSON that is not, nearly, or wrongly what was asked for.


@pytest.mark.parametrize(
    ("text", "message", "path"),
    [
        ("", "Input data was truncated", "$"),
        ("{", "Input data was truncated", "$"),
        ("what", "JSON is malformed: invalid character (byte 0)", "$"),
        ('{"text":"x"} x', "JSON is malformed: trailing characters (byte 14)", "$"),
        ('{"text":1}', "Expected `str`, got `int`", "$.text"),
        ("{}", "Object missing required field `text`", "$"),
        ("[]", "Expected `object`, got `array`", "$"),
        ('{"text":NaN}', "JSON is malformed: invalid character (byte 8)", "$"),
        ('{"text":"x","n":1e999}', "Number out of range", "$.n"),
        ('{"text":"\\ud800"}', "Input data was truncated", "$"),
        ('{"text":"x","more":' + "[" * 100_000, "Nested too deeply", "$"),
        ('{"text":"x","n":99999999999999999999}', "Expected `int` in 64 bits", "$.n"),
    ],
)
def test_json_that_is_wrong_has_an_answer(text: str, message: str, path: str) -> None:
    with pytest.raises(Invalid) as caught:
        Reader(Counted, format_of("json")).read(text)
    if "64 bits" not in message:
        assert (caught.value.message, caught.value.path) == (message, path)


def test_of_members_twice_the_last_counts() -> None:
    reader = Reader(Say | Join, format_of("json"))
    assert reader.read('{"type":"Join","type":"Say","text":"a","text":"b","id":1,"id":2}') == (Say("b"), 2)


def test_nan_is_no_json_for_models_of_pydantic_either() -> None:
    reader = Reader(Measured, format_of("json"))
    for text in ('{"value":NaN}', '{"value":Infinity}', '{"value":"x"}', '{"value":' + "[" * 100_000, "x"):
        with pytest.raises(Invalid):
            reader.read(text)
    with pytest.raises(Invalid) as caught:
        Reader(list[Measured] | Say, format_of("json")).read('[{"value":"x"}]')
    assert "\n" not in caught.value.message


def test_the_path_in_a_model_of_pydantic_is_written_like_the_others() -> None:
    with pytest.raises(Invalid) as caught:
        Reader(Deep, format_of("json")).read('{"parts":[{"kind":"cat","lives":"many"}]}')
    assert caught.value.path == "$.parts[0].lives"


def test_a_fault_repeats_little_of_what_was_sent() -> None:
    reader = Reader(Say | Join, format_of("json"))
    with pytest.raises(Invalid) as caught:
        reader.read(json.dumps({"type": "x" * 700 + "\n"}))
    assert len(caught.value.message) < 250
    assert caught.value.message.isprintable()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["type", "text", "id", "room"]), inner),
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(KINDS)), VALUES)
def test_any_json_is_a_message_or_invalid(name: str, value: object) -> None:
    form = KINDS[name][0]
    for annotation in (form, form | Join):
        try:
            message, _ = Reader(annotation, format_of("json")).read(json.dumps(value))
        except Invalid as exc:
            assert exc.message  # noqa: PT017 - what it says is looked at, not that it comes
        else:
            json.loads(Writer(annotation, format_of("json")).write(message))


@settings(max_examples=300)
@given(st.text() | st.text(alphabet='{}[]":,\\utype0123456789.e-'))
def test_any_text_is_a_message_or_invalid(text: str) -> None:
    for annotation in (Say, Say | Join, SayModel, SayStrict, dict, Any):
        with contextlib.suppress(Invalid):
            Reader(annotation, format_of("json")).read(text)


@settings(max_examples=300)
@given(st.binary())
def test_any_bytes_are_a_message_or_invalid(data: bytes) -> None:
    for codec in ("msgpack", LINES):
        for annotation in (Say, Say | Join, SayModel, SayStrict, dict, Any):
            with contextlib.suppress(Invalid):
                Reader(annotation, format_of(codec)).read(data)


# Over the wire.


async def ask(peer: Peer, message: Any) -> Any:
    await peer.send(message if isinstance(message, str | bytes) else json.dumps(message))
    reply = await peer.receive()
    return json.loads(reply) if isinstance(reply, str) else reply


def make_app() -> App:
    app = App()

    @app.handler("/chat")
    class Chat:
        async def on_message(self, message: Say | Join) -> Said | None:
            match message:
                case Say(text):
                    return Said("you", text)
                case Join():
                    return None

    return app


async def test_a_union_arrives_as_its_classes(stack: Stack) -> None:
    async with stack.serve(make_app()) as server, server.connect("/chat") as peer:
        await peer.send('{"type":"Join","room":"x"}')
        assert await ask(peer, {"type": "Say", "text": "hi"}) == {"who": "you", "text": "hi"}
        assert await ask(peer, {"type": "Say", "text": "żółć", "id": 7}) == {"id": 7, "who": "you", "text": "żółć"}


async def test_an_invalid_message_does_not_end_the_connection(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wsdeco")
    async with stack.serve(make_app()) as server, server.connect("/chat") as peer:
        error = {"type": "error", "code": "invalid"}
        assert await ask(peer, {"type": "Say", "text": 1, "id": "a"}) == {
            **error,
            "message": "Expected `str`, got `int`",
            "path": "$.text",
            "id": "a",
        }
        assert (await ask(peer, "nonsense"))["path"] == "$"
        assert (await ask(peer, b"{}"))["message"] == "Expected JSON, got a binary frame"
        assert await ask(peer, {"type": "Say", "text": "hi"}) == {"who": "you", "text": "hi"}
    assert [record.levelname for record in caplog.records if record.name == "wsdeco" and "invalid" in record.msg] == [
        "INFO"
    ] * 3


async def test_invalid_close_closes_with_1007(stack: Stack) -> None:
    app = App()

    @app.handler("/ws", invalid="close")
    class Strict:
        async def on_message(self, message: Say) -> None: ...

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send('{"text":1}')
        assert await closing(peer) == Close(1007, "$.text: Expected `str`, got `int`", by="server")


async def test_too_many_invalid_messages_in_a_row_close_with_1008(stack: Stack) -> None:
    app = App()

    @app.handler("/ws", max_invalid=2)
    class Patient:
        async def on_message(self, message: Say) -> Say:
            return message

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        for _ in range(3):
            assert (await ask(peer, "x"))["code"] == "invalid"
            assert (await ask(peer, "x"))["code"] == "invalid"
            assert await ask(peer, {"text": "fine"}) == {"text": "fine"}
        assert (await ask(peer, "x"))["code"] == "invalid"
        assert (await ask(peer, "x"))["code"] == "invalid"
        await peer.send("x")
        assert await closing(peer) == Close(1008, "too many invalid messages", by="server")


async def test_messagepack_travels_in_binary_frames(stack: Stack) -> None:
    app = App()

    @app.handler("/ws", codec="msgpack")
    class Packed(WebSocketHandler):
        async def on_message(self, message: Say | Join) -> Said | Say:
            await self.sink.send_json(Say("json"))
            return Said("you", message.text if isinstance(message, Say) else message.room)

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send(msgspec.msgpack.encode({"type": "Join", "room": "x", "id": 1}))
        assert await peer.receive() == '{"type":"Say","text":"json"}'
        answer = await peer.receive()
        assert isinstance(answer, bytes)
        assert msgspec.msgpack.decode(answer) == {"type": "Said", "id": 1, "who": "you", "text": "x"}
        await peer.send("{}")
        told = await peer.receive()
        assert isinstance(told, bytes)
        assert msgspec.msgpack.decode(told)["message"] == "Expected MessagePack, got a text frame"


async def test_streams_end_with_done_if_they_answer_a_request(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Tokens:
        async def on_message(self, message: Say) -> AsyncIterator[Say | Join]:
            for word in message.text.split():
                yield Say(word)

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        assert await ask(peer, {"text": "a b", "id": 1}) == {"type": "Say", "id": 1, "text": "a"}
        assert json.loads(await peer.receive()) == {"type": "Say", "id": 1, "text": "b"}
        assert json.loads(await peer.receive()) == {"id": 1, "done": True}
        assert await ask(peer, {"text": "c"}) == {"type": "Say", "text": "c"}
        assert (await ask(peer, {"text": 1}))["code"] == "invalid"
        assert (await ask(peer, {"id": "$1"}))["path"] == "$.id"


class Countdown:
    """An iterator that is no generator, so it has no `aclose`."""

    def __init__(self, start: int) -> None:
        self.left = start

    def __aiter__(self) -> AsyncIterator[Say]:
        return self

    async def __anext__(self) -> Say:
        if self.left == 0:
            raise StopAsyncIteration
        self.left -= 1
        return Say(str(self.left))


async def test_a_stream_may_be_any_iterator_and_answers_come_between(stack: Stack) -> None:
    app = App()
    answers: list[str] = []

    @app.handler("/ws")
    class Counting(WebSocketHandler):
        def on_message(self, message: Say) -> AsyncIterator[Say]:
            _ = self.sink.create_task(self.wonder())
            return Countdown(2)

        async def wonder(self) -> None:
            answers.append((await self.sink.ask(Join("who"), Say)).text)
            await self.sink.send_json("thanks")

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send('{"text": "go"}')
        told = [json.loads(await peer.receive()) for _ in range(3)]
        assert [each["text"] for each in told if "text" in each] == ["1", "0"]
        (question,) = [each for each in told if "room" in each]
        await peer.send(json.dumps({"id": question["id"], "text": "me"}))
        assert json.loads(await peer.receive()) == "thanks"
    assert answers == ["me"]


async def test_sends_and_broadcasts_take_types(stack: Stack) -> None:
    app = App()
    lobby = app.room("lobby")

    @app.handler("/ws")
    class Chat(WebSocketHandler):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            lobby.join(sink)
            await sink.send(Said("server", "welcome"))

        async def on_message(self, message: Say) -> Said | Join | None:
            await self.sink.send(Join("sent"))
            self.sink.send_nowait(Join("nowait"))
            await self.sink.send_json({"plain": 1})
            await lobby.broadcast(Join("room"))
            app.broadcast_nowait("/ws", Join("route"))
            return None

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        assert json.loads(await peer.receive()) == {"type": "Said", "who": "server", "text": "welcome"}
        assert (await ask(peer, {"text": "go"}))["room"] == "sent"
        assert (await peer.receive()) == '{"type":"Join","room":"nowait","seats":[]}'
        assert (await peer.receive()) == '{"plain":1}'
        assert (await peer.receive()) == '{"type":"Join","room":"room","seats":[]}'
        assert (await peer.receive()) == '{"type":"Join","room":"route","seats":[]}'


@dataclass
class Joined:
    who: str


@dataclass
class Left:
    who: str


@dataclass
class Told:
    who: str
    type: Literal["told"] = "told"


@pytest.mark.parametrize("names_them", [False, True])
async def test_classes_that_no_client_can_tell_apart_are_said_once(
    names_them: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    class Member:
        async def on_message(self, message: Say) -> None:
            for _ in range(2):
                for each in (Joined("a"), Left("a"), Said("a", "b"), Told("a")):
                    await app.broadcast("/ws", each)

    class Other:
        async def on_message(self, message: Say) -> Said | None: ...

    if names_them:
        Member.on_message.__annotations__["return"] = Joined | Left | None
        app.add("/ws", Member)
        # It is asked how it would write them, and does not.
        app.add("/other", Other)
        for each in (Joined("a"), Left("a")):
            await app.room("lobby").broadcast(each)
    else:
        app.add("/ws", Member)
    async with connect(app, "/ws") as client:
        await client.send(Say("x"))
        assert await client.receive() == ('{"type":"Joined","who":"a"}' if names_them else '{"who":"a"}')
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [each.partition(", so that")[0] for each in said] == (
        [] if names_them else ["Joined and Left have the same members and are sent without a `type`"]
    )


async def test_a_text_handler_may_reply_with_types() -> None:
    app = App()

    @app.handler("/ws")
    class Half:
        async def on_message(self, text: str) -> Say:
            return Say(text)

    async with connect(app, "/ws") as client:
        await client.send("x")
        await client.expect('{"text":"x"}')


async def test_a_codec_gives_types_to_a_handler_that_only_sends() -> None:
    app = App()

    @app.handler("/ws", codec="json")
    class Ticks:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.send({"tick": 1})

    async with connect(app, "/ws") as client:
        await client.expect('{"tick":1}')


# Requests of the server.


class Asks(WebSocketHandler):
    async def on_message(self, message: Say) -> Said:
        answer = await self.sink.ask(Join("sure?"), Say)
        return Said(message.text, answer.text)


async def test_a_hook_asks_while_other_messages_wait(stack: Stack) -> None:
    app = App()
    app.add("/ws", Asks)
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        asked = await ask(peer, {"text": "first"})
        assert asked == {"id": "$1", "room": "sure?", "seats": []}
        for number in range(50):
            await peer.send(json.dumps({"text": f"between {number}"}))
        await peer.send('{"id":"$1","text":"yes"}')
        assert json.loads(await peer.receive()) == {"who": "first", "text": "yes"}
        for number in range(50):
            asked = json.loads(await peer.receive())
            assert await ask(peer, {"id": asked["id"], "text": "no"}) == {"who": f"between {number}", "text": "no"}


async def test_an_answer_behind_more_than_the_inbox_holds_is_found(stack: Stack) -> None:
    app = App()
    app.add("/ws", Asks, max_inbox=1000, max_message_size=2000)
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await ask(peer, {"text": "first"})
        for number in range(3):
            await peer.send(json.dumps({"text": f"{number}" * 900}))
        await peer.send('{"id":"$1","text":"yes"}')
        assert json.loads(await peer.receive()) == {"who": "first", "text": "yes"}


async def test_a_task_asks_while_no_hook_runs(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Pings(WebSocketHandler):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.work = sink.create_task(self.ping())

        async def ping(self) -> None:
            answers = await asyncio.gather(*[self.sink.ask({"n": n}, dict[str, Any]) for n in range(3)])
            await self.sink.send([answer["m"] for answer in answers])

        async def on_message(self, message: dict[str, Any]) -> dict[str, Any]:
            return message

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        asked = [json.loads(await peer.receive()) for _ in range(3)]
        assert await ask(peer, {"other": 1}) == {"other": 1}
        for each in reversed(asked):
            await peer.send(json.dumps({"id": each["id"], "m": each["n"] * 10}))
        assert json.loads(await peer.receive()) == [0, 10, 20]


async def test_a_task_has_its_answer_while_a_hook_runs_that_came_after_others(stack: Stack) -> None:
    app = App()
    answers: list[str] = []
    begun, gate = asyncio.Event(), asyncio.Event()

    @app.handler("/ws")
    class Asks:
        sink: Sink

        async def wonder(self) -> None:
            answers.append((await self.sink.ask(Join("sure?"), Say)).text)

        async def on_message(self, message: Say) -> Say:
            if message.text == "ask":
                _ = self.sink.create_task(self.wonder())
            elif message.text == "wait":
                begun.set()
                await gate.wait()
            else:
                # Whoever watches the inbox begins to wait before the hooks do.
                await asyncio.sleep(0)
            return message

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await ask(peer, {"text": "ask"})
        asked = json.loads(await peer.receive())
        for _ in range(3):
            await ask(peer, {"text": "hi"})
        await peer.send(json.dumps({"text": "wait"}))
        await soon(begun.wait())
        await peer.send(json.dumps({"id": asked["id"], "text": "yes"}))
        await until(lambda: answers == ["yes"])
        gate.set()
        assert json.loads(await peer.receive())["text"] == "wait"


async def test_an_answer_of_another_type_is_invalid_and_waited_on() -> None:
    app = App()
    app.add("/ws", Asks)
    async with connect(app, "/ws") as client:
        await client.send('{"text":"first"}')
        await client.receive()
        await client.send('{"id":"$1","text":5}')
        await client.send('{"id":"$1","text":"yes"}')
        assert json.loads(await client.receive())["path"] == "$.text"
        await client.expect('{"who":"first","text":"yes"}')


async def test_a_question_ends_by_time_or_with_the_connection() -> None:
    seen: list[BaseException] = []

    class Impatient(WebSocketHandler):
        async def on_message(self, message: Say) -> Said:
            try:
                await self.sink.ask(Join("sure?"), Say, timeout=5)
            except (TimeoutError, ConnectionClosed) as exc:
                seen.append(exc)
                raise
            return Said("", "")

    served = Served(Impatient)
    wire = await served.connected('{"text":"x"}')
    wire.lose()
    await served.over(wire)
    assert isinstance(seen[0], ConnectionClosed)
    wire = await served.connected('{"text":"x"}')
    await served.clock.advance(4.9)
    assert len(seen) == 1
    await served.clock.advance(0.1)
    assert str(seen[1]) == "no answer to request $1 within 5 s"
    await served.over(wire)


async def test_an_answer_that_comes_with_the_close_counts() -> None:
    answers: list[Say] = []

    class Last(WebSocketHandler):
        async def on_message(self, message: Say) -> None:
            answers.append(await self.sink.ask(Join("sure?"), Say))

    served = Served(Last)
    wire = await served.connected('{"text":"x"}')
    wire.message('{"id":"$1","text":"yes"}')
    wire.close(4001, "bye")
    await served.over(wire)
    assert answers == [Say("yes")]


async def test_what_cannot_be_asked_is_said() -> None:
    faults: list[str] = []

    class Wrong(WebSocketHandler):
        async def on_message(self, message: Say) -> None:
            bad: Any = complex
            for question, answer in (([1], Say), ({"id": 1}, Say), (Say("x"), bad)):
                try:
                    await self.sink.ask(question, answer)
                except TypeError as exc:
                    faults.append(str(exc))

    class Plain(WebSocketHandler):
        async def on_message(self, text: str) -> None:
            for question in ({"a": 1},):
                try:
                    await self.sink.ask(question, dict)
                except TypeError as exc:
                    faults.append(str(exc))

    class Half(WebSocketHandler):
        async def on_message(self, text: str) -> Say | None:
            try:
                await self.sink.ask({"a": 1}, dict)
            except TypeError as exc:
                faults.append(str(exc))
            return None

    for handler, message in ((Wrong, '{"text":"x"}'), (Plain, "x"), (Half, "x")):
        served = Served(handler)
        wire = await served.connected(message)
        await served.lose(wire)
    assert [fault.partition(":")[0][:40] for fault in faults] == [
        "ask() takes a message whose wire form is",
        "ask() takes a message whose wire form is",
        "ask() cannot take this answer",
        "ask() needs an on_message that is annota",
        "ask() needs an on_message that is annota",
    ]


# Definition.


class Color(enum.Enum):
    RED = "red"


class SayElsewhere(msgspec.Struct, tag="Say"):
    words: str


@dataclass
class Holds:
    inner: Say | Join


@dataclass
class HoldsOdd:
    number: complex


HoldsMissing = make_dataclass("HoldsMissing", [("inner", "Nowhere")])


class ArrayLike(msgspec.Struct, array_like=True):
    a: int


def handler_of(message: Any, reply: Any = None) -> type:
    async def on_message(self: object, message: Any) -> Any: ...

    on_message.__annotations__ = {"message": message, "return": reply}
    return type("Handler", (), {"on_message": on_message})


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (int, ["is annotated `message: ", "`int` is no message", "write `str` or `bytes`, a dataclass"]),
        (Say | int, ["`int` is no message"]),
        (Say | str, ["`str` and `Say` both come as text"]),
        (Say | SayElsewhere, ["Say and SayElsewhere are not told apart", "`type` is 'Say' in both"]),
        (Say | dict, ["`dict` and Say are not told apart"]),
        (list[Say] | list[Join], ["both are arrays"]),
        (Say | list[int] | ArrayLike, ["both are arrays"]),
        (Holds, ["field `inner: ", "of Holds", "is a union of classes inside of a message", "`tag=True`"]),
        (HoldsOdd, ["field `number: complex` of HoldsOdd", "JSON has no form for `complex`"]),
        (HoldsMissing, ["HoldsMissing", "cannot be decoded", "Nowhere"]),
        (list[complex], ["`list[complex]`", "JSON has no form for `complex`"]),
        (Say | Any, ["`Any` is every message"]),
    ],
    ids=str,
)
def test_what_cannot_be_a_message_is_said_at_definition(annotation: Any, says: list[str]) -> None:
    app = App()
    with pytest.raises(HandlerError) as caught:
        app.add("/ws", handler_of(annotation))
    for part in says:
        assert part in str(caught.value)


def test_a_reply_that_cannot_be_written_is_said_at_definition() -> None:
    app = App()
    with pytest.raises(HandlerError, match=r"is annotated to return `.*HoldsOdd`: field `number"):

        @app.handler("/ws")
        class Wrong:
            async def on_message(self, message: Say) -> HoldsOdd: ...  # type: ignore[empty-body]

    @app.handler("/ws")
    class Right:
        async def on_message(self, message: Say) -> str | bytes | Said | None: ...


def test_without_the_extra_the_definition_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wsdeco.typed", None)
    app = App()
    with pytest.raises(HandlerError, match=r"pip install 'wsdeco\[typed\]'"):

        @app.handler("/ws")
        class Chat:
            async def on_message(self, message: Say) -> None: ...

    with pytest.raises(HandlerError, match=r"pip install 'wsdeco\[typed\]'"):

        @app.handler("/ws", codec="msgpack")
        class Ticks:
            async def on_connect(self, addr: Address, sink: Sink) -> None: ...


async def test_a_broadcast_with_types_needs_one_way_to_write_it() -> None:
    app = App()
    lobby = app.room("lobby")
    with pytest.raises(TypeError, match="no handler that it goes to has messages with types"):
        await lobby.broadcast(Say("x"))

    @app.handler("/json")
    class Json:
        sink: Sink

        async def on_message(self, message: Say) -> Said | Join | None:
            lobby.join(self.sink)
            return None

    @app.handler("/plain")
    class Plain:
        async def on_message(self, text: str) -> None: ...

    assert await lobby.broadcast(Said("a", "b")) == 0

    @app.handler("/other")
    class Other:
        async def on_message(self, message: dict[str, int]) -> dict[str, int]:
            return message

    # Who gives such messages decides how they are written, and others would have written them in another way.
    async with connect(app, "/json") as client:
        await client.send(Say("let me in"))
        await until(lambda: len(lobby) == 1)
        assert await lobby.broadcast(Said("a", "b")) == 1
        assert await client.receive() == '{"type":"Said","who":"a","text":"b"}'
    with pytest.raises(TypeError, match="no handler that it goes to"):
        await app.broadcast("/plain", Say("x"))

    @app.handler("/packed", codec="msgpack")
    class Packed:
        async def on_message(self, message: Say) -> None: ...

    with pytest.raises(TypeError, match="write it in different ways"):
        lobby.broadcast_nowait(Said("a", "b"))
    assert await app.broadcast("/packed", Said("a", "b")) == 0


async def test_a_value_without_a_form_is_a_failure_of_the_hook(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(WebSocketHandler):
        async def on_message(self, message: dict[str, Any]) -> Any:
            return {"x": object()} if message else {"x": "\ud800"}

    logged = Logged(caplog)
    served = Served(Odd)
    for message in ('{"a":1}', "{}"):
        wire = await served.connected(message)
        assert wire.seen == ["accepted", ("close", 1011, "internal error")]
        await served.over(wire)
    assert len(logged.lines(logging.ERROR)) == 2
    assert math.isfinite(len(logged.exceptions()))


def test_a_named_tuple_is_described_as_the_object_that_it_is() -> None:
    app = App()
    app.add("/ws", handler_of(SayTuple))
    document = json.dumps(asyncapi(registry_of(app)))
    assert '"loud"' in document


# Several at a time.


async def test_parallel_messages_are_handled_side_by_side(stack: Stack) -> None:
    app = App()
    running: set[str] = set()
    gate = asyncio.Event()
    most: list[int] = []

    @app.handler("/ws", parallel=3)
    class Parallel:
        async def on_message(self, text: str | bytes) -> str:
            assert isinstance(text, str)
            running.add(text)
            most.append(len(running))
            await gate.wait()
            running.discard(text)
            return text

        async def on_disconnect(self, reason: object) -> None:
            most.append(-len(running))

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        for number in range(7):
            await peer.send(str(number))
        await until(lambda: len(running) == 3)
        gate.set()
        assert sorted([str(await peer.receive()) for _ in range(7)]) == [str(number) for number in range(7)]
        await peer.close()
        await until(lambda: most[-1] <= 0)
    assert (max(most), most[-1]) == (3, 0)


async def test_a_failure_of_one_of_several_closes_and_the_others_end_before_on_disconnect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = asyncio.Event()
    ended: list[str] = []

    class Parallel(WebSocketHandler):
        async def on_message(self, text: str) -> AsyncIterator[str]:
            yield f"begin {text}"
            if text == "fail":
                raise KeyError(text)
            await gate.wait()
            ended.append(text)

        async def on_disconnect(self, reason: object) -> None:
            ended.append("disconnect")

    logged = Logged(caplog)
    served = Served(Parallel, parallel=3)
    wire = await served.connected("slow", b"binary is not taken", "fail")
    assert wire.seen[1:] == ["begin slow", "begin fail", ("close", 1011, "internal error")]
    assert ended == []
    gate.set()
    await served.over(wire)
    assert ended == ["slow", "disconnect"]
    assert logged.lines() == ["ERROR Parallel.on_message failed for 192.0.2.1:4321"]


async def test_a_deadline_reaches_all_of_several(caplog: pytest.LogCaptureFixture) -> None:
    cancelled: list[str] = []

    class Parallel(WebSocketHandler):
        async def on_message(self, text: str) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(text)
                if text == "stubborn":
                    await asyncio.Event().wait()
                if text == "fails":
                    raise ValueError(text) from None
                raise

    logged = Logged(caplog)
    served = Served(Parallel, parallel=5, max_connection_duration=10)
    wire = await served.connected("a", "stubborn", "fails")
    await served.clock.advance(10)
    assert sorted(cancelled) == ["a", "fails", "stubborn"]
    await served.clock.advance(1)
    await served.over(wire)
    assert [line.partition(":")[0] for line in logged.lines()] == ["WARNING Parallel.on_message for 192.0.2.1"]


async def test_messages_with_types_in_parallel_ask_side_by_side() -> None:
    app = App()
    app.add("/ws", Asks, parallel=4)
    async with connect(app, "/ws") as client:
        for number in range(4):
            await client.send(json.dumps({"text": str(number)}))
        asked = [json.loads(await client.receive())["id"] for _ in range(4)]
        for number in reversed(asked):
            await client.send(json.dumps({"id": number, "text": "yes"}))
        assert sorted([json.loads(await client.receive())["who"] for _ in range(4)]) == ["0", "1", "2", "3"]


async def test_an_invalid_answer_counts_while_the_hook_waits() -> None:
    app = App()
    app.add("/reply", Asks, max_invalid=1)
    app.add("/close", Asks, invalid="close")
    for path, code in (("/reply", 1008), ("/close", 1007)):
        async with connect(app, path) as client:
            await client.send('{"text":"x"}')
            await client.receive()
            await client.send('{"id":"$1","text":1}')
            if path == "/reply":
                assert json.loads(await client.receive())["code"] == "invalid"
                await client.send('{"id":"$1","text":1}')
            with pytest.raises(ConnectionClosed) as caught:
                await client.receive()
            assert isinstance(caught.value.reason, Close)
            assert caught.value.reason.code == code
