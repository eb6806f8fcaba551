"""The checks of handler classes: what is accepted, what is refused, and what the refusal says to write instead."""

import collections.abc
import functools
import gc
import inspect
import json
import textwrap
import weakref
from abc import ABC, ABCMeta, abstractmethod
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdeco import reasons
from wsdeco.channels.data import Address
from wsdeco.channels.sink import Sink
from wsdeco.definition.base import HandlerMeta, Hooks, WebSocketHandler, bound_hook, hooks_of
from wsdeco.definition.hooks import HOOK_NAMES
from wsdeco.reasons import Close, DisconnectReason, HandlerError, HandlerWarning, Unknown

T = TypeVar("T")
Text = TypeVar("Text", bound=str)
Message = TypeVar("Message", str, bytes)

TEXT: Final = Hooks(takes_text=True, takes_binary=False, streams=False)
BINARY: Final = Hooks(takes_text=False, takes_binary=True, streams=False)
BOTH: Final = Hooks(takes_text=True, takes_binary=True, streams=False)
NEITHER: Final = Hooks(takes_text=False, takes_binary=False, streams=False)
STREAM: Final = Hooks(takes_text=True, takes_binary=False, streams=True)

ADDR: Final = Address("127.0.0.1", 50000)
SINK: Final = cast(Sink, object())

CONNECT: Final = "`async def on_connect(self, addr, sink)`"
MESSAGE: Final = "`async def on_message(self, text)`"
DISCONNECT: Final = "`async def on_disconnect(self, reason)`"


def handler_class(body: str, name: str = "Echo", **names: object) -> type:
    """Return a class with the methods in `body`, which no type checker gets to see, among these `names`."""
    namespace: dict[str, Any] = {**vars(collections.abc), **vars(reasons), **globals(), **names}
    exec(f"class {name}:\n{textwrap.indent(body, '    ')}", namespace)  # noqa: S102 - the body is written in this file
    made: type = namespace[name]
    return made


def refusal(cls: type) -> str:
    with pytest.raises(HandlerError) as caught:
        hooks_of(cls)
    return str(caught.value)


# What is refused, and the words that the refusal must have.
FAULTS: Final = {
    "not async": ("def on_message(self, text): ...", ["Echo.on_message(self, text)", "not async", MESSAGE]),
    "generator": ("def on_message(self, text): yield text", ["not async", MESSAGE]),
    "connect not async": ("def on_connect(self, addr, sink): ...", ["not async", CONNECT]),
    "disconnect not async": ("def on_disconnect(self, reason): ...", ["not async", DISCONNECT]),
    "too few": ("async def on_message(self): ...", ["on_message(self)", "(text) and takes none", MESSAGE]),
    "one of two": ("async def on_connect(self, addr): ...", ["(addr, sink) and takes 1 of that", CONNECT]),
    "too many": (
        "async def on_message(self, text, flags, *rest): ...",
        ["(text) and nothing fills `flags`;", "give it a default", "the decorator's own wrapper", MESSAGE],
    ),
    "too many for disconnect": (
        "async def on_disconnect(self, code, reason): ...",
        ["(reason) and nothing fills `reason`", DISCONNECT],
    ),
    "keyword-only": ("async def on_message(self, *, text): ...", ["takes `text` by keyword only", MESSAGE]),
    "keyword-only self": ("async def on_message(*, self, text): ...", ["no parameter for `self`", MESSAGE]),
    "keyword-only beside": (
        "async def on_message(self, text, *, flags): ...",
        ["takes `flags` by keyword only", "called positionally", MESSAGE],
    ),
    "only keywords": ("async def on_message(self, **keywords): ...", ["takes none", MESSAGE]),
    "no self": ("async def on_message(): ...", ["no parameter for `self`", MESSAGE]),
    "self forgotten": (
        "async def on_message(text): ...",
        ["on_message(text)", "has no `self` in front of `text`", MESSAGE],
    ),
    "swapped by name": ("async def on_connect(self, sink, addr): ...", ["takes the sink first", CONNECT]),
    "sink first": ("async def on_connect(self, sink, _): ...", ["takes the sink first", CONNECT]),
    "address second": ("async def on_connect(self, _, address): ...", ["takes the sink first", CONNECT]),
    "swapped by annotation": (
        "async def on_connect(self, a: Sink, b: Address): ...",
        ["takes the sink first", CONNECT],
    ),
    "staticmethod": ("@staticmethod\nasync def on_message(text): ...", ["is a staticmethod", MESSAGE, "@staticmethod"]),
    "classmethod": ("@classmethod\nasync def on_message(cls, text): ...", ["is a classmethod", MESSAGE]),
    "property": ("@property\ndef on_message(self): ...", ["is a property", MESSAGE, "without @property"]),
    "property without getter": ("on_message = property()", ["is a property", MESSAGE]),
    "cached_property": ("@functools.cached_property\ndef on_message(self): ...", ["is a cached_property", MESSAGE]),
    "no callable": ("on_message = None", ["type NoneType", "cannot be called", "delete it"]),
    "addr annotation": (
        "async def on_connect(self, addr: str, sink: Sink): ...",
        ["`addr: str`", "Address", "write `addr: Address`", "from wsdeco import Address"],
    ),
    "sink annotation": (
        "async def on_connect(self, addr: Any, sink: 'list[int]'): ...",
        ["`sink: list[int]`", "write `sink: Sink`"],
    ),
    "message annotation": (
        "async def on_message(self, number: int): ...",
        ["`number: int`", "`int` is no message", "write `str` or `bytes`, a dataclass, a TypedDict, `dict` or `list`"],
    ),
    "message annotation that nothing can have": (
        "async def on_message(self, text: None): ...",
        ["is annotated `text: None`, and what arrives is str or bytes: write `text: str` for text"],
    ),
    "message annotation in a string": ("async def on_message(self, n: 'int | None'): ...", ["`n: int | None`"]),
    "reason annotation": (
        "async def on_disconnect(self, reason: Close): ...",
        ["`reason: wsdeco.reasons.Close`", "Error, Timeout, Unknown can arrive", "`reason: DisconnectReason`"],
    ),
    "reason as text": ("async def on_disconnect(self, reason: str): ...", ["`reason: str`", "DisconnectReason"]),
    "reply": (
        "async def on_message(self, text) -> complex: ...",
        ["to return `complex`", "`complex` is no message", "write `str` or `bytes`, a dataclass"],
    ),
    "one reply of two": ("async def on_message(self, text) -> str | int: ...", ["`str | int`", "`int` is no message"]),
    "awaitable reply": ("async def on_message(self, text) -> Awaitable[str]: ...", ["Awaitable[str]"]),
    "iterator in a coroutine": ("async def on_message(self, text) -> AsyncIterator[str]: ...", ["AsyncIterator[str]"]),
    "reply of a plain function": ("def on_message(self, text) -> Awaitable[int]: ...", ["`int`", "is no message"]),
    "yielded": (
        "async def on_message(self, text) -> AsyncIterator[int]: yield 1",
        ["yield `int`", "`int` is no message"],
    ),
    "None yielded": (
        "async def on_message(self, text) -> AsyncIterator[str | None]: yield ''",
        ["yield `str | None`", "a reply is str or bytes", "`yield json.dumps(...)`"],
    ),
    "yield annotated as return": (
        "async def on_message(self, text) -> str: yield text",
        ["has a `yield`", "`-> AsyncIterator[str]`"],
    ),
    "union of awaitable and iterator": (
        "def on_message(self, text) -> Awaitable[str] | AsyncIterator[str]: ...",
        ["not async"],
    ),
    "yield in on_connect": (
        "async def on_connect(self, addr, sink): yield",
        ["only on_message may have", CONNECT, "await sink.send(...)"],
    ),
    "yield in on_disconnect": ("async def on_disconnect(self, reason): yield", ["only on_message may have"]),
    "no hook": ("pass", ["it has no hook: write at least one of", CONNECT, MESSAGE, DISCONNECT]),
    "misspelt": (
        "async def on_mesage(self, text): ...",
        ["did you mean on_message?", MESSAGE, "on_mesage(self, text)"],
    ),
    "transposed": ("async def on_conenct(self, addr, sink): ...", ["did you mean on_connect?", CONNECT]),
    "past tense": ("async def on_disconnected(self, reason): ...", ["did you mean on_disconnect?", DISCONNECT]),
    "camel case": ("async def onMessage(self, text): ...", ["Echo.onMessage", "did you mean on_message?"]),
    "static and misspelt": ("@staticmethod\nasync def on_messages(text): ...", ["did you mean on_message?"]),
    "name of another framework": ("def on_open(self): ...", ["did you mean on_connect?", CONNECT]),
    "nothing but on_error": (
        "async def on_error(self): ...",
        ["no hook", "Echo.on_error", "did you mean on_disconnect?"],
    ),
    "nothing but message": ("async def message(self, text): ...", ["no hook", "did you mean on_message?"]),
}


@pytest.mark.parametrize(("body", "words"), FAULTS.values(), ids=FAULTS)
def test_a_refusal_names_the_class_and_the_fix(body: str, words: list[str]) -> None:
    message = refusal(handler_class(body))
    assert message.startswith("class Echo cannot handle WebSocket connections:\n  - ")
    assert [word for word in words if word not in message] == []


def test_a_refusal_lists_all_faults_at_once() -> None:
    message = refusal(
        handler_class(
            """
            def on_connect(self, sink, addr): ...
            def on_message(self) -> int: ...
            async def on_close(self): ...
            """
        )
    )
    faults = message.split("\n  - ")[1:]
    assert [fault.split("(")[0] for fault in faults] == [
        *["Echo.on_connect"] * 2,
        *["Echo.on_message"] * 3,
        "Echo.on_close",
    ]


def test_a_refusal_names_file_and_line() -> None:
    class Chat:
        def on_message(self, text: str) -> None: ...

    line = inspect.getsourcelines(Chat.on_message)[1]
    assert f"Chat.on_message(self, text: str) -> None [{__file__}:{line}] is not async" in refusal(Chat)


def test_a_refusal_names_the_base_that_has_the_fault() -> None:
    class Base:
        def on_message(self, text: str) -> None: ...

    class Chat(Base): ...

    message = refusal(Chat)
    assert message.startswith("class Chat cannot")
    assert "Base.on_message" in message


# What is accepted, and what the lifecycle is told of it.
ACCEPTED: Final = {
    "text": ("async def on_message(self, text): ...", TEXT),
    "str": ("async def on_message(self, text: str): ...", TEXT),
    "bytes": ("async def on_message(self, data: bytes): ...", BINARY),
    "both": ("async def on_message(self, data: str | bytes): ...", BOTH),
    "optional": ("async def on_message(self, data: bytes | None): ...", BINARY),
    "string annotation": ("async def on_message(self, data: 'bytes | str'): ...", BOTH),
    "any": (
        "async def on_message(self, data: Any): ...",
        Hooks(takes_text=True, takes_binary=True, streams=False, message=Any),
    ),
    "object": ("async def on_message(self, data: object): ...", BOTH),
    "type variable": ("async def on_message(self, data: T): ...", BOTH),
    "bound type variable": ("async def on_message(self, data: Text): ...", TEXT),
    "constrained type variable": ("async def on_message(self, data: Message): ...", BOTH),
    "unknown name": ("async def on_message(self, data: 'OnlyForTypeCheckers'): ...", TEXT),
    "any arguments": ("async def on_message(self, *args): ...", TEXT),
    "annotated arguments": ("async def on_message(self, *args: bytes): ...", BINARY),
    "self among the arguments": ("async def on_message(*args): ...", TEXT),
    "positional-only": ("async def on_message(self, text, /): ...", TEXT),
    "defaults": ("async def on_message(self, text='', *, flags=0, **rest): ...", TEXT),
    "stream": ("async def on_message(self, text): yield text", STREAM),
    "annotated stream": ("async def on_message(self, text) -> AsyncIterator[str | bytes]: yield text", STREAM),
    "stream without elements": ("async def on_message(self, text) -> AsyncIterator: yield text", STREAM),
    "plain function of a stream": ("def on_message(self, text) -> AsyncIterator[str]: ...", STREAM),
    "plain function of any stream": ("def on_message(self, text) -> AsyncIterator: ...", STREAM),
    "plain function of an awaitable": ("def on_message(self, text) -> Coroutine[Any, Any, str]: ...", TEXT),
    "plain function of any awaitable": ("def on_message(self, text) -> Awaitable: ...", TEXT),
    "reply": ("async def on_message(self, text) -> str | bytes | None: ...", TEXT),
    "reply of any kind": ("async def on_message(self, text) -> Any: ...", TEXT),
    "never returns": ("async def on_message(self, text) -> 'NoReturn': ...", TEXT),
    "only on_connect": ("async def on_connect(self, addr: Address, sink: Sink): ...", NEITHER),
    "address as tuple": ("async def on_connect(self, addr: tuple[str, int], sink: 'Sink'): ...", NEITHER),
    "hooks with any arguments": ("async def on_connect(self, *args): ...", NEITHER),
    "only on_disconnect": ("async def on_disconnect(self, reason: DisconnectReason): ...", NEITHER),
    "reasons in a union": ("async def on_disconnect(self, r: Close | Error | Timeout | Unknown | None): ...", NEITHER),
    "reason of any kind": ("async def on_disconnect(self, reason: Any): ...", NEITHER),
    "helpers": (
        """
        async def on_message(self, text): ...
        def on_click(self): ...
        def on_join(self, name): ...
        def on_collect(self): ...
        def on_reconnect(self): ...
        def on_error(self): ...
        def message(self): ...
        def _on_connect(self): ...
        def on_messages(self): ...
        class on_connects: ...
        on_disconnects = 3
        """,
        TEXT,
    ),
}


@pytest.mark.parametrize(("body", "hooks"), ACCEPTED.values(), ids=ACCEPTED)
def test_what_a_class_takes(body: str, hooks: Hooks) -> None:
    assert hooks_of(handler_class(textwrap.dedent(body))) == hooks


PARAMETERS: Final = st.lists(
    st.sampled_from(["a", "b=0", "*c", "*", "d", "e=0", "**f", "/", "g", "h=0"]), unique=True, max_size=5
)
HOOK_ARGUMENTS: Final = {"on_connect": 2, "on_message": 1, "on_disconnect": 1}


@given(hook=st.sampled_from(sorted(HOOK_ARGUMENTS)), parameters=PARAMETERS)
def test_a_hook_is_accepted_exactly_if_it_can_be_called(hook: str, parameters: list[str]) -> None:
    source = f"async def {hook}({', '.join(['self', *parameters])}): ..."
    try:
        cls = handler_class(source)
    except SyntaxError:
        return
    bound: Callable[..., Any] = getattr(cls(), hook)
    try:
        inspect.signature(bound).bind(*[None] * HOOK_ARGUMENTS[hook])
        callable_so = True
    except TypeError:
        callable_so = False
    try:
        hooks_of(cls)
        accepted = True
    except HandlerError:
        accepted = False
    assert accepted == callable_so


ANNOTATIONS: Final = ("", "str", "bytes", "str | None", "'str'", "Hidden", "'Hidden'", "Sink", "Address", "complex")
REASON_ANNOTATIONS: Final = ("", "DisconnectReason", "'DisconnectReason'", "Close", "Close | Error", "object")


@given(
    start=st.sampled_from(["async def", "def"]),
    hook=st.sampled_from(HOOK_NAMES),
    names=st.lists(st.sampled_from(["addr", "sink", "text", "*", "/"]), max_size=3, unique=True),
    annotations=st.lists(st.sampled_from((*ANNOTATIONS, *REASON_ANNOTATIONS)), min_size=4, max_size=4),
    body=st.sampled_from(["...", "yield 'a'"]),
    hidden=st.sampled_from([str, Sink, complex]),
)
def test_a_hook_written_like_another_is_judged_as_if_it_were_the_first(
    start: str, hook: str, names: list[str], annotations: list[str], body: str, hidden: type
) -> None:
    reply, *others = annotations
    parameters = [
        name if name in "*/" or not annotation else f"{name}: {annotation}"
        for name, annotation in zip(names, others, strict=False)
    ]
    source = f"{start} {hook}({', '.join(['self', *parameters])}){reply and f' -> {reply}'}: {body}"
    try:
        alike, other = (handler_class(source, Hidden=hidden) for _ in range(2))
    except SyntaxError:
        return
    # It says something of its own, and is compared with none.
    vars(other)[hook].attribute = 1
    assert verdict(alike) == verdict(other)


def verdict(cls: type) -> Hooks | str:
    try:
        return hooks_of(cls)
    except HandlerError as exc:
        return str(exc)


# Hooks that come by other ways than `async def` in the class.


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def with_database(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(self: object, text: str) -> Any:
        return await function(self, text, "database")

    return wrapper


class Decorator:
    """A decorator written as a class, without and (below) with the descriptor protocol."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self.function(*args, **kwargs)


class BindingDecorator(Decorator):
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return functools.partial(self.function, instance)


class CallableHook:
    async def __call__(self, data: bytes) -> None: ...


async def free_function(self: object, data: bytes) -> None: ...


async def free_with_mode(self: object, mode: int, data: str | bytes) -> None: ...


OTHER: Final = CallableHook()


def wrapped(times: int) -> Callable[..., Any]:
    function: Callable[..., Any] = free_function
    for _ in range(times):
        function = logged(function)
    return function


def test_a_plain_wrapper_around_an_async_function_is_looked_through() -> None:
    class Echo:
        @logged
        async def on_message(self, data: bytes) -> bytes:
            return data

    class Stream:
        @logged
        async def on_message(self, data: bytes) -> AsyncIterator[bytes]:
            yield data

    assert hooks_of(Echo) == BINARY
    assert hooks_of(Stream) == Hooks(takes_text=False, takes_binary=True, streams=True)


def test_a_fault_behind_a_wrapper_is_found() -> None:
    class Echo:
        @logged
        @logged
        async def on_message(self, text: str, flags: int) -> None: ...

    assert "nothing fills `flags`" in refusal(Echo)


def test_a_wrapper_that_fills_a_parameter_is_called_as_it_is_written() -> None:
    class Echo:
        @logged
        @with_database
        async def on_message(self, text: str, database: str) -> str:
            return f"{text} in the {database}"

    assert hooks_of(Echo) == TEXT


def from_json(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(self: object, data: str) -> str:
        return json.dumps(await function(self, json.loads(data)))

    return wrapper


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(self: object, message: Any) -> Any:
        return await function(self, message)

    return wrapper


def joined(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(self: object, text: str) -> str:
        return "".join([part async for part in function(self, text)])

    return wrapper


async def test_a_wrapper_may_convert_what_arrives_and_what_is_sent() -> None:
    class Json:
        @from_json
        async def on_message(self, data: dict[str, int]) -> dict[str, int]:
            return data

    class Joined:
        @joined
        async def on_message(self, text: str) -> AsyncIterator[str]:
            yield text

    class Checked:
        @checked
        async def on_message(self, data: bytes) -> bytes:
            return data

    assert hooks_of(Json) == TEXT
    assert hooks_of(Joined) == TEXT
    assert hooks_of(Checked) == BINARY
    assert await bound_hook(Json(), "on_message")('{"a": 1}') == '{"a": 1}'
    assert await bound_hook(Joined(), "on_message")("hi") == "hi"
    assert await bound_hook(Checked(), "on_message")(b"hi") == b"hi"


def test_hooks_assigned_from_elsewhere() -> None:
    class Assigned:
        on_message = free_function

    class Partial:
        on_message = functools.partialmethod(free_with_mode, 3)

    class ByKeyword:
        on_message = functools.partialmethod(free_with_mode, mode=3)

    class CallableObject:
        on_message = CallableHook()

    class BoundMethod:
        on_message = OTHER.__call__

    class Deep:
        on_message = wrapped(times=5)

    assert hooks_of(Assigned) == BINARY
    assert hooks_of(Partial) == BOTH
    assert "takes none" in refusal(ByKeyword) or "keyword only" in refusal(ByKeyword)
    assert hooks_of(CallableObject) == BINARY
    assert hooks_of(BoundMethod) == BINARY
    assert hooks_of(Deep) == BINARY


async def test_a_partial_that_is_no_descriptor_gets_no_self() -> None:
    async def reply(prefix: str, text: str) -> str:
        return prefix + text

    class Echo:
        on_message = staticmethod(functools.partial(reply, "Echo: "))

    class Wrapped:
        on_message = functools.singledispatchmethod(free_function)

    assert "is a staticmethod" in refusal(Echo)
    assert hooks_of(Wrapped) == BINARY


def test_a_decorator_that_does_not_pass_self_on_is_found() -> None:
    class Unbound:
        @Decorator
        async def on_message(self, text: str) -> None: ...

    class Bound:
        @BindingDecorator
        async def on_message(self, text: str) -> None: ...

    assert "nothing fills `text`" in refusal(Unbound)
    assert hooks_of(Bound) == TEXT


def test_a_hook_that_does_not_tell_its_signature_is_accepted() -> None:
    class Silent:
        __signature__ = "(none)"

        async def __call__(self, *args: object) -> None: ...

    class Echo:
        on_message = Silent()

    assert hooks_of(Echo) == TEXT


# Ways to build a class.


class Greeting:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        await sink.send("hello")


def test_hooks_are_inherited_and_mixed_in() -> None:
    class Base:
        async def on_message(self, data: bytes) -> None: ...

    class Both(Greeting, Base): ...

    class Narrowed(Base):
        async def on_message(self, data: str) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]

    assert hooks_of(Both) == BINARY
    assert hooks_of(Narrowed) == TEXT


def test_the_nearest_definition_counts() -> None:
    class Base:
        def on_message(self, text: str) -> None: ...

    class Fixed(Base):
        async def on_message(self, text: str) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]

    assert hooks_of(Fixed) == TEXT


def test_dataclasses_generics_and_abstract_bases() -> None:
    @dataclass(slots=True, frozen=True)
    class Frozen:
        room: str = "lobby"

        async def on_message(self, text: str) -> str:
            return self.room

    class Typed(Generic[T]):
        async def on_message(self, data: T) -> None: ...

    class Shape(ABC):
        @abstractmethod
        async def on_message(self, data: bytes) -> None: ...

        @abstractmethod
        def colour(self) -> str: ...

    class Round(Shape):
        async def on_message(self, data: bytes) -> None: ...

        def colour(self) -> str:
            return "blue"

    class Speaks(Protocol):
        async def on_message(self, data: str, /) -> None: ...

    class Speaker(Speaks): ...

    assert hooks_of(Frozen) == TEXT
    assert hooks_of(Typed) == BOTH
    assert hooks_of(Round) == BINARY
    assert hooks_of(Speaker) == TEXT
    message = refusal(Shape)
    assert "abstract methods are left: define colour, on_message, or decorate a subclass" in message


def test_what_is_no_class_is_refused() -> None:
    async def echo(text: str) -> str:
        return text

    def refused(cls: object) -> str:
        with pytest.raises(HandlerError) as caught:
            hooks_of(cast(type, cls))
        return str(caught.value)

    message = refused(echo)
    assert message.startswith("echo(text: str) -> str [")
    assert "`class Handler:`" in message
    assert MESSAGE in message
    assert "@ws.route(path)" in message
    assert "instance of Greeting" in refused(Greeting())
    assert "instance of NoneType" in refused(None)
    assert refused(GenericEcho[int]).endswith("write `GenericEcho`")


class GenericEcho(Generic[T]):
    async def on_message(self, data: T) -> None: ...


# Shared state.


def test_mutable_class_attributes_are_warned_of_once_for_all() -> None:
    class Base:
        seen: set[str] = set()  # noqa: RUF012 - what the warning is for

    class Chat(Base):
        members = []  # type: ignore[var-annotated]  # noqa: RUF012
        _names: dict[str, str] = {}  # noqa: RUF012
        queue = deque[str]()  # noqa: RUF012
        counts = defaultdict[str, int](int)  # noqa: RUF012
        buffer = bytearray()
        seen: set[str] = set()  # noqa: RUF012
        meant: ClassVar[list[str]] = []
        quoted: "ClassVar[list[str]]" = []  # noqa: RUF012
        constant: Final = {"help": "text"}
        COMMANDS = {"help": "text"}  # noqa: RUF012
        __private__ = []  # type: ignore[var-annotated]  # noqa: RUF012
        name = "chat"
        options = ("a", "b")

        async def on_message(self, text: str) -> None: ...

    with pytest.warns(HandlerWarning) as caught:
        hooks_of(Chat)
    hooks_of(Chat)
    assert len(caught) == 1
    message = str(caught[0].message)
    names = "members (list), _names (dict), queue (deque), counts (defaultdict), buffer (bytearray), seen (set)"
    assert f"class Chat: every connection shares the mutable class attribute {names}: " in message
    assert "set `self.members` in `__init__` or `on_connect`" in message
    assert "`members: ClassVar[...]` if sharing is meant" in message
    assert caught[0].filename == __file__
    assert caught[0].lineno == inspect.getsourcelines(Chat.on_message)[1]


def test_a_warning_finds_a_place_for_a_class_without_source() -> None:
    class Echo:
        members: list[str] = []  # noqa: RUF012
        on_message = functools.partial(print)

    del Echo.on_message
    cast(Any, Echo).on_message = SourcelessHook()
    with pytest.warns(HandlerWarning, match="members") as caught:
        hooks_of(Echo)
    assert (caught[0].filename, caught[0].lineno) == (__name__, 1)


class SourcelessHook:
    """Asynchronous by its annotation, and without Python code."""

    __call__ = cast(Any, print)
    __signature__ = inspect.Signature(
        [inspect.Parameter("text", inspect.Parameter.POSITIONAL_ONLY)], return_annotation=Awaitable[str]
    )


# The cache.


def test_hooks_are_inspected_once_and_classes_are_let_go() -> None:
    class Echo:
        async def on_message(self, text: str) -> None: ...

    assert hooks_of(Echo) is hooks_of(Echo)
    gone = weakref.ref(Echo)
    del Echo
    gc.collect()
    assert gone() is None


def test_a_fault_is_reported_each_time() -> None:
    class Echo: ...

    for _ in range(2):
        with pytest.raises(HandlerError, match="class Echo"):
            hooks_of(Echo)
    with pytest.raises(HandlerError, match="class NoneType"):
        hooks_of(NoneType)


# The explicit base.


class Strict(WebSocketHandler):
    """The hooks of every kind, as type checkers accept them."""

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        await super().on_connect(addr, sink)

    async def on_message(self, text: str) -> str:
        return f"Echo: {text}"

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        await super().on_disconnect(reason)


class Binary(WebSocketHandler):
    async def on_message(self, data: bytes) -> None:
        assert self.addr == ADDR


class Streaming(WebSocketHandler):
    async def on_message(self, text: str) -> AsyncIterator[str]:
        yield text


def test_the_base_lets_hooks_differ_as_they_may() -> None:
    assert hooks_of(Strict) == TEXT
    assert hooks_of(Binary) == BINARY
    assert hooks_of(Streaming) == STREAM


async def test_the_hooks_of_the_base_keep_the_connection_and_do_nothing_else() -> None:
    handler = Strict()
    on_connect, on_message, on_disconnect = (bound_hook(handler, name) for name in HOOK_NAMES)
    await on_connect(ADDR, SINK)
    assert (handler.addr, handler.sink) == (ADDR, SINK)
    assert await on_message("hi") == "Echo: hi"
    await on_disconnect(Unknown())
    assert await bound_hook(WebSocketHandler(), "on_message")("hi") is None


def test_the_base_checks_hooks_where_a_class_is_defined() -> None:
    with pytest.raises(HandlerError, match="class Faulty cannot") as caught:

        class Faulty(WebSocketHandler):  # pyright: ignore[reportUnusedClass]
            def on_connect(self, addr: Address, sink: Sink) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]

            async def on_message(self) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]

    assert str(caught.value).count("\n  - ") == 2


def test_type_checkers_find_wrong_hooks_of_the_base() -> None:
    with pytest.raises(HandlerError, match="DisconnectReason"):

        class Wrong(WebSocketHandler):  # pyright: ignore[reportUnusedClass]
            async def on_disconnect(self, reason: str) -> None: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]

    with pytest.raises(HandlerError, match="`int` is no message"):

        class WrongReply(WebSocketHandler):  # pyright: ignore[reportUnusedClass]
            async def on_message(self, text: str) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
                return len(text)


def test_an_intermediate_class_of_the_base_may_lack_everything() -> None:
    class Abstract(WebSocketHandler, ABC):
        @abstractmethod
        def room(self) -> str: ...

        async def on_text(self, text: str) -> None: ...

    class Concrete(Abstract):
        def room(self) -> str:
            return "lobby"

        async def on_message(self, text: str) -> None:
            await self.on_text(text)

    message = refusal(Abstract)
    assert "abstract methods are left: define room" in message
    assert "it has no hook" in message
    assert hooks_of(Concrete) == TEXT


def test_keywords_of_a_class_reach_its_bases() -> None:
    class Tagged(WebSocketHandler):
        tag: ClassVar[str]

        def __init_subclass__(cls, *, tag: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            cls.tag = tag

    class Echo(Tagged, tag="echo"):
        async def on_message(self, text: str) -> None: ...

    assert Echo.tag == "echo"


def test_a_hook_hidden_behind_the_base_is_found() -> None:
    class Logging:
        async def on_message(self, text: str) -> None: ...

    with pytest.raises(HandlerError) as caught:

        class Wrong(WebSocketHandler, Logging): ...  # type: ignore[misc]  # pyright: ignore[reportIncompatibleMethodOverride]

    assert "Logging.on_message is hidden behind the default of WebSocketHandler" in str(caught.value)
    assert "name WebSocketHandler last in `class Wrong(...)`" in str(caught.value)

    class Right(Logging, WebSocketHandler): ...

    assert hooks_of(Right) == TEXT


def test_an_override_that_passes_for_the_default_counts() -> None:
    class Echo(WebSocketHandler):
        async def on_message(self, text: str) -> None: ...

    functools.update_wrapper(cast(Any, Echo).on_message, WebSocketHandler.on_message, ["__module__", "__name__"])
    del cast(Any, Echo).on_message.__wrapped__
    assert hooks_of(Echo) == TEXT


def test_the_metaclass_makes_abstract_base_classes() -> None:
    assert issubclass(HandlerMeta, ABCMeta)
    assert type(WebSocketHandler) is HandlerMeta


# The hooks of an instance.


async def test_missing_hooks_of_an_instance_are_filled_in() -> None:
    class Silent: ...

    handler = Silent()
    on_connect, on_message, on_disconnect = (bound_hook(handler, name) for name in HOOK_NAMES)
    await on_connect(ADDR, SINK)
    assert vars(handler) == {"addr": ADDR, "sink": SINK}
    assert await on_message("hi") is None
    await on_disconnect(Close(1000))


async def test_own_hooks_of_an_instance_are_taken() -> None:
    handler = Greeting()
    assert bound_hook(handler, "on_connect") == handler.on_connect


@pytest.mark.parametrize("base", [object, WebSocketHandler])
async def test_an_instance_without_room_for_the_connection_says_so(base: type) -> None:
    slotted = type("Slotted", (base,), {"__slots__": ()})
    with pytest.raises(HandlerError, match=r'Slotted has no on_connect.*add "addr" and "sink" to its __slots__'):
        await bound_hook(slotted(), "on_connect")(ADDR, SINK)
