"""The generated factory: what a constructor is given, what cannot be given, and what is left of the class."""

import copy
import functools
import gc
import pickle
import weakref
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, Protocol, Self, TypeVar, cast, runtime_checkable
from uuid import UUID

import pytest
from fastapi import Depends, Query
from pydantic import BaseModel
from starlette.convertors import CONVERTOR_TYPES, Convertor
from starlette.datastructures import Headers, QueryParams
from starlette.requests import HTTPConnection, Request

from wsdeco.channels.data import Address
from wsdeco.channels.sink import Sink
from wsdeco.definition.base import Factory, HandlerMeta, Hooks, WebSocketHandler, bound_hook, hooks_of
from wsdeco.definition.factory import build_factory, class_factory, headers_factory
from wsdeco.definition.hooks import HOOK_NAMES
from wsdeco.reasons import HandlerError, HandlerWarning, Unknown

T = TypeVar("T")

ADDR: Final = Address("127.0.0.1", 50000)
SINK: Final = cast(Sink, object())
TEXT: Final = Hooks(takes_text=True, takes_binary=False, streams=False)


def request(query: str = "", **path_params: object) -> HTTPConnection:
    return HTTPConnection(
        {
            "type": "websocket",
            "path": "/",
            "headers": [(b"x-name", b"Ada")],
            "query_string": query.encode(),
            "path_params": path_params,
        }
    )


def refusal(cls: object, path: str = "/ws", factory: object | None = None) -> str:
    with pytest.raises(HandlerError) as caught:
        build_factory(cast(type, cls), path, factory)
    return str(caught.value)


class Echo:
    """Replies with what it gets."""

    async def on_message(self, text: str) -> str:
        return text


async def kept_by(handler: Any) -> tuple[object, object]:
    """Return what the default `on_connect` keeps on `handler`."""
    await bound_hook(handler, "on_connect")(ADDR, SINK)
    return handler.addr, handler.sink


def always(handler: object) -> Callable[[Headers], object]:
    return lambda headers: handler


# What is made.


async def test_an_instance_is_one_of_the_class_with_every_hook() -> None:
    handler: Any = build_factory(Echo, "/ws")(request())
    assert isinstance(handler, Echo)
    on_connect, on_message, on_disconnect = (bound_hook(handler, name) for name in HOOK_NAMES)
    await on_connect(ADDR, SINK)
    assert vars(handler) == {"addr": ADDR, "sink": SINK}
    assert await on_message("hi") == "hi"
    await on_disconnect(Unknown())


def test_each_connection_has_an_instance_of_its_own() -> None:
    factory = build_factory(Echo, "/ws")
    assert factory(request()) is not factory(request())


def test_the_generated_class_has_been_checked_and_goes_by_the_name_of_the_class() -> None:
    generated = type(build_factory(Echo, "/ws")(request()))
    assert type(generated) is HandlerMeta
    assert generated is not Echo
    names = ("__name__", "__qualname__", "__module__", "__doc__")
    assert [getattr(generated, name) for name in names] == [getattr(Echo, name) for name in names]
    assert hooks_of(generated) is hooks_of(Echo)


def test_the_class_stays_as_it_was() -> None:
    before = dict(vars(Echo))
    build_factory(Echo, "/ws")
    assert dict(vars(Echo)) == before
    assert type(Echo) is type
    assert pickle.loads(pickle.dumps(Echo)) is Echo  # noqa: S301 - pickled right here
    assert isinstance(pickle.loads(pickle.dumps(Echo())), Echo)  # noqa: S301


def test_a_class_and_what_was_generated_from_it_are_let_go() -> None:
    class Chat:
        async def on_message(self, text: str) -> None: ...

    factory = build_factory(Chat, "/ws")
    gone: list[Callable[[], object]] = [weakref.ref(Chat), weakref.ref(type(factory(request())))]
    del Chat, factory
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_subclass_hooks_of_the_class_are_not_called() -> None:
    announced: list[type] = []

    class Base:
        def __init_subclass__(cls, *, tag: str) -> None:
            announced.append(cls)

    class Chat(Base, tag="chat"):
        async def on_message(self, text: str) -> None: ...

    build_factory(Chat, "/ws")
    assert announced == [Chat]


def test_super_and_isinstance_work_inside_the_class() -> None:
    class Base:
        def __init__(self) -> None:
            self.log = ["base"]

    class Chat(Base):
        def __init__(self) -> None:
            super().__init__()
            self.log.append("chat")

        async def on_message(self, text: str) -> None: ...

    handler = build_factory(Chat, "/ws")(request())
    assert isinstance(handler, Chat)
    assert handler.log == ["base", "chat"]


# Ways to build a class.


async def test_a_slotted_class_gets_room_for_the_connection_and_no_more() -> None:
    class Slotted:
        __slots__ = ("name",)

        async def on_message(self, text: str) -> None: ...

    class WithSink:
        __slots__ = ("sink",)
        sink: Sink

        async def on_message(self, text: str) -> None: ...

    class Explicit(WebSocketHandler):
        __slots__ = ()

        async def on_message(self, text: str) -> None: ...

    for cls in (Slotted, WithSink, Explicit):
        handler = build_factory(cls, "/ws")(request())
        assert not hasattr(handler, "__dict__")
        assert await kept_by(handler) == (ADDR, SINK)


async def test_a_tuple_cannot_have_slots_and_gets_a_dictionary() -> None:
    class Pair(tuple[int, int]):
        __slots__ = ()

        async def on_message(self, text: str) -> None: ...

    handler = build_factory(Pair, "/ws")(request())
    assert handler == ()
    assert await kept_by(handler) == (ADDR, SINK)


@pytest.mark.parametrize("options", [{}, {"slots": True}, {"frozen": True}, {"slots": True, "frozen": True}])
async def test_dataclasses(options: dict[str, bool]) -> None:
    class Chat:
        room: str
        headers: Headers
        seen: "list[str]" = field(default_factory=list[str])

        async def on_message(self, text: str) -> None: ...

    cls: type = cast(Any, dataclass)(**options)(Chat)
    factory = build_factory(cls, "/{room}")
    first, second = cast(Any, factory(request(room="lobby"))), cast(Any, factory(request(room="garden")))
    assert (first.room, first.headers["x-name"], second.room) == ("lobby", "Ada", "garden")
    assert first.seen is not second.seen
    assert await kept_by(first) == (ADDR, SINK)
    assert repr(first).startswith("test_dataclasses.<locals>.Chat(room='lobby'")


def test_generic_abstract_and_protocol_classes() -> None:
    class Shape(ABC, Generic[T]):
        @abstractmethod
        def colour(self) -> T: ...

        async def on_message(self, text: str) -> None: ...

    class Round(Shape[str]):
        def colour(self) -> str:
            return "blue"

    @runtime_checkable
    class Named(Protocol):
        name: str

    class Person(Named):
        name = "Ada"

        async def on_message(self, text: str) -> None: ...

    assert isinstance(build_factory(Round, "/ws")(request()), Round)
    assert isinstance(build_factory(Person, "/ws")(request()), Named)
    assert "abstract methods are left: define colour" in refusal(Shape)


class Registering(type):
    """A metaclass that remembers its classes, and takes keywords."""

    made: Final[list[str]] = []

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], tag: str = "") -> "Registering":
        cls.made.append(name + tag)
        return super().__new__(cls, name, bases, namespace)

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], tag: str = "") -> None:
        super().__init__(name, bases, namespace)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made: Any = super().__call__(*args, **kwargs)
        made.called_through = "the metaclass"
        return made


def made_by(cls: type) -> type[type]:
    """Return the metaclass of the class that was generated from `cls`."""
    return type(type(build_factory(cls, "/{room}")(request(room="lobby"))))


def test_a_class_that_has_a_metaclass_keeps_it() -> None:
    class Chat(metaclass=Registering, tag="!"):
        def __init__(self, room: str) -> None:
            self.room = room

        async def on_message(self, text: str) -> None: ...

    class Other(metaclass=Registering):
        async def on_message(self, text: str) -> None: ...

    chat: Any = build_factory(Chat, "/{room}")(request(room="lobby"))
    assert (chat.room, chat.called_through) == ("lobby", "the metaclass")
    assert issubclass(made_by(Chat), HandlerMeta)
    assert issubclass(made_by(Chat), Registering)
    assert made_by(Chat) is made_by(Other)
    assert "Chat!" in Registering.made


def test_a_metaclass_that_is_one_of_handlers_is_enough() -> None:
    class Mine(HandlerMeta): ...

    class Chat(metaclass=Mine):
        async def on_message(self, text: str) -> None: ...

    plain = ABCMeta("Plain", (Echo,), {})
    assert made_by(Chat) is Mine
    assert made_by(plain) is HandlerMeta


def test_a_metaclass_with_parameters_of_its_own_is_asked_for_them() -> None:
    class Meta(type):
        def __call__(cls, room: str) -> Any:
            return super().__call__(f"#{room}")

    class Chat(metaclass=Meta):
        def __init__(self, name: str) -> None:
            self.name = name

        async def on_message(self, text: str) -> None: ...

    handler: Any = build_factory(Chat, "/{room}")(request(room="lobby"))
    assert handler.name == "#lobby"


def test_a_metaclass_that_allows_no_subclass_is_named() -> None:
    class Sealed(type):
        def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> "Sealed":
            if bases:
                raise TypeError("no subclasses")
            return super().__new__(cls, name, bases, namespace)

    class Chat(metaclass=Sealed):
        async def on_message(self, text: str) -> None: ...

    message = refusal(Chat)
    assert "the metaclass Sealed of class Chat does not let a subclass be made" in message
    assert "TypeError: no subclasses" in message
    assert "pass `factory=`" in message
    assert isinstance(build_factory(Chat, "/ws", always(Chat()))(request()), Chat)


async def test_a_pydantic_model_is_filled_by_its_fields() -> None:
    class Chat(BaseModel):
        room: str
        n: int = 7

        async def on_message(self, text: str) -> None: ...

    handler = build_factory(Chat, "/{room}")(request(room="lobby"))
    assert isinstance(handler, Chat)
    assert (handler.room, handler.n) == ("lobby", 7)
    assert await kept_by(handler) == (ADDR, SINK)
    assert "`n: int`" in refusal(Chat, "/{room}/{n}")


# What a constructor is given.


class Everything:
    def __init__(
        self, headers: Headers, query_params: QueryParams, request: HTTPConnection, room: str, n: int, *, x: float = 0
    ) -> None:
        self.given = (headers["x-name"], query_params["token"], type(request), room, n, x)

    async def on_message(self, text: str) -> None: ...


def given(cls: type, path: str, connection: HTTPConnection) -> Any:
    return cast(Any, build_factory(cls, path)(connection)).given


def test_parameters_are_filled_by_name() -> None:
    connection = request("token=abc", room="lobby", n=3, x=1.5)
    assert given(Everything, "/{room}/{n:int}/{x:float}", connection) == ("Ada", "abc", HTTPConnection, "lobby", 3, 1.5)


def test_a_parameter_that_is_not_supplied_keeps_its_default() -> None:
    assert given(Everything, "/{room}/{n:int}", request("token=abc", room="lobby", n=3))[-1] == 0


def test_a_path_parameter_nobody_takes_is_fine() -> None:
    assert isinstance(build_factory(Echo, "/{room}/{n:int}")(request(room="lobby", n=3)), Echo)


def test_a_path_parameter_hides_what_has_the_same_name() -> None:
    class Chat:
        def __init__(self, headers: str) -> None:
            self.given = headers

        async def on_message(self, text: str) -> None: ...

    assert given(Chat, "/{headers}", request(headers="all")) == "all"


def test_positional_only_parameters_are_filled_in_their_order() -> None:
    class Chat:
        def __init__(self, room: str, limit: int = 9, headers: Headers | None = None, /) -> None:
            self.given = (room, limit, headers)

        async def on_message(self, text: str) -> None: ...

    assert given(Chat, "/{room}", request(room="lobby"))[:2] == ("lobby", 9)
    assert given(Chat, "/{room}", request(room="lobby"))[2]["x-name"] == "Ada"


def test_any_arguments_get_nothing() -> None:
    class Chat:
        def __init__(self, *args: object, **kwargs: object) -> None:
            self.given = (args, kwargs)

        async def on_message(self, text: str) -> None: ...

    assert given(Chat, "/{room}", request(room="lobby")) == ((), {})


def test_a_constructor_that_passes_everything_on_is_looked_through() -> None:
    def logged(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            function(*args, **kwargs)

        return wrapper

    class Chat:
        def __new__(cls, *args: object, **kwargs: object) -> Self:
            return super().__new__(cls)

        @logged
        def __init__(self, room: str) -> None:
            self.given = room

        async def on_message(self, text: str) -> None: ...

    assert given(Chat, "/{room}", request(room="lobby")) == "lobby"


def test_new_is_filled_like_init() -> None:
    class Chat:
        given: str

        def __new__(cls, room: str) -> Self:
            self = super().__new__(cls)
            self.given = room
            return self

        async def on_message(self, text: str) -> None: ...

    assert given(Chat, "/{room}", request(room="lobby")) == "lobby"
    assert "needs `room`" in refusal(Chat)


def test_a_class_that_tells_no_signature_is_called_without_arguments() -> None:
    class Words(dict[str, int]):
        async def on_message(self, text: str) -> None: ...

    assert build_factory(Words, "/{room}")(request(room="lobby")) == {}


SUPPLIED: Final[dict[str, tuple[Any, ...]]] = {
    "headers": (Headers, Mapping, "Mapping[str, str]", Any, object, None),
    "query_params": (QueryParams, "QueryParams | None"),
    "request": (HTTPConnection, "HTTPConnection", "OnlyForTypeCheckers"),
    "text": (str, "str", Annotated[str, "a name"], "Annotated[str, 'a name']"),
    "rest": (str, str | None),
    "n": (int, float, "int"),
    "x": (float,),
    "key": (UUID, "UUID"),
}
CONTRADICTED: Final[dict[str, tuple[Any, str]]] = {
    "headers": (dict, "`headers: Headers`"),
    "query_params": ("dict[str, str]", "`query_params: QueryParams`"),
    "request": (Request, "`request: HTTPConnection`"),
    "text": (int, "`text: str`"),
    "rest": ("list[str]", "`rest: str`"),
    "n": (str, "`n: int`"),
    "x": (int, "`x: float`"),
    "key": (str, "`key: UUID`"),
}
ALL_CONVERTORS: Final = "/{text}/{n:int}/{x:float}/{key:uuid}/{rest:path}"


def class_annotated(name: str, annotation: object) -> type:
    parameter = f"def __init__(self, {name}): ..."
    namespace: dict[str, Any] = dict(globals())
    exec(parameter, namespace)  # noqa: S102 - written right here
    init = namespace["__init__"]
    init.__annotations__ = {} if annotation is None else {name: annotation}
    return type("Chat", (Echo,), {"__init__": init})


@pytest.mark.parametrize(("name", "annotation"), [(name, each) for name, all_ in SUPPLIED.items() for each in all_])
def test_annotations_that_fit_are_accepted(name: str, annotation: object) -> None:
    build_factory(class_annotated(name, annotation), ALL_CONVERTORS)


@pytest.mark.parametrize("name", CONTRADICTED)
def test_annotations_that_contradict_are_refused(name: str) -> None:
    annotation, fix = CONTRADICTED[name]
    message = refusal(class_annotated(name, annotation), ALL_CONVERTORS)
    assert f"annotates `{name}: " in message
    assert f"write {fix}" in message


def test_the_kinds_of_path_parameters_can_be_given_instead_of_a_path() -> None:
    cls = class_annotated("n", str)
    assert isinstance(class_factory(cls, {"n": None})(request(n=3)), cls)
    with pytest.raises(HandlerError, match="write `n: int`"):
        class_factory(cls, {"n": int})


class Anything(Convertor[Any]):
    regex = ".+"

    def convert(self, value: str) -> Any:
        return [value]

    def to_string(self, value: Any) -> str:
        return str(value)


class Unannotated(Anything):
    convert = cast(Any, staticmethod(copy.copy))


class Silent(Anything):
    convert = cast(Any, dict.fromkeys)


@pytest.mark.parametrize("convertor", [Anything(), Unannotated(), Silent()])
def test_a_convertor_of_the_users_own_may_give_anything(
    convertor: Convertor[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONVERTOR_TYPES, "anything", convertor)
    build_factory(class_annotated("it", list), "/{it:anything}")


# What a constructor cannot be given.


def test_a_parameter_that_nothing_supplies_is_refused() -> None:
    class Chat:
        def __init__(self, room: str, database: object, *, header: str) -> None: ...

        async def on_message(self, text: str) -> None: ...

    message = refusal(Chat, "/{room}")
    assert message.count("\n  - ") == 2
    assert "Chat(room: str, database: object, *, header: str) needs `database`, which nothing supplies" in message
    assert "It can be one of `headers`, `query_params`, `request`, `room`, or a parameter of the path" in message
    assert "give it a default, or pass `factory=`" in message
    assert "needs `header`, which nothing supplies: did you mean `headers`?" in message


def test_a_constructor_with_depends_of_fastapi_is_told_where_that_works() -> None:
    class Chat:
        def __init__(
            self,
            room: str,
            db: object = Depends(object),
            user: "Annotated[str, Depends(str)]" = "",
            token: str = Query(),
        ) -> None: ...

        async def on_message(self, text: str) -> None: ...

    message = refusal(Chat, "/{room}")
    assert message.count("\n  - ") == 3
    assert (
        "has Depends(...) for `db`, which FastAPI fills in its own endpoints only: write one that takes `db`; for a "
        "handler that is `async def endpoint(websocket: WebSocket, db=...)` with "
        "`await handle_socket(websocket, Handler(db))` in it"
    ) in message
    assert "has Depends(...) for `user`" in message
    assert "has Query(...) for `token`" in message


def test_the_sink_comes_with_on_connect() -> None:
    class Chat:
        def __init__(self, sink: Sink) -> None: ...

        async def on_message(self, text: str) -> None: ...

    assert "needs `sink`" in (message := refusal(Chat))
    assert "write `async def on_connect(self, addr, sink)` and keep `sink` there" in message


def test_faults_of_hooks_and_constructor_come_in_one_error() -> None:
    class Base:
        def __init__(self, database: object) -> None: ...

        @property
        def sink(self) -> object: ...

        def on_message(self, text: str) -> None: ...

    class Chat(Base, ABC):
        @abstractmethod
        def name(self) -> str: ...

    message = refusal(Chat)
    assert message.count("\n  - ") == 4
    words = ["not async", "abstract methods are left", "its property `sink` has no setter", "needs `database`"]
    assert [word for word in words if word not in message] == []
    assert "rename the property, or write `async def on_connect(self, addr, sink)`" in message


def test_a_property_without_setter_is_fine_where_on_connect_is_written() -> None:
    class Chat:
        @property
        def sink(self) -> object:
            return None

        async def on_connect(self, addr: Address, sink: Sink) -> None: ...

    assert isinstance(build_factory(Chat, "/ws")(request()), Chat)


async def test_a_property_with_setter_takes_the_connection() -> None:
    class Chat:
        @property
        def sink(self) -> object:
            return self._sink

        @sink.setter
        def sink(self, sink: Sink) -> None:
            self._sink = sink

        async def on_message(self, text: str) -> None: ...

    assert await kept_by(build_factory(Chat, "/ws")(request())) == (ADDR, SINK)


def test_what_is_no_class_is_refused() -> None:
    async def echo(text: str) -> str:
        return text

    assert "is a function, and a handler is a class" in refusal(echo)
    assert "is a function" in refusal(echo, factory=Echo)


def test_the_warning_of_shared_attributes_comes_once() -> None:
    class Chat:
        members: list[str] = []  # noqa: RUF012 - what the warning is for

        async def on_message(self, text: str) -> None: ...

    with pytest.warns(HandlerWarning, match="members") as caught:
        build_factory(Chat, "/a")
    handler = build_factory(Chat, "/b")(request())
    hooks_of(type(handler))
    assert len(caught) == 1


# Factories of the user's own.


class Named(Echo):
    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def of(headers: Headers) -> "Named":
        return Named(headers["x-name"])


class Maker:
    def create(self, headers: Headers) -> Named:
        return Named(headers["x-name"])


class StaticMaker:
    @staticmethod
    def create(headers: Headers) -> Named:
        return Named(headers["x-name"])


class ClassMaker:
    @classmethod
    def create(cls, headers: Headers) -> Named:
        return Named(headers["x-name"])


class CallableMaker:
    def __call__(self, headers: Headers) -> Named:
        return Named(headers["x-name"])


class FromHeaders(Named):
    def __init__(self, headers: Headers) -> None:
        super().__init__(headers["x-name"])


def prefixed(prefix: str, headers: Headers) -> Named:
    return Named(prefix + headers["x-name"])


FACTORIES: Final[dict[str, object]] = {
    "function": Named.of,
    "partial": functools.partial(prefixed, ""),
    "object with create": Maker(),
    "class with create": Maker,
    "class with static create": StaticMaker,
    "class with class create": ClassMaker,
    "callable object": CallableMaker(),
    "the class itself": FromHeaders,
}


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
@pytest.mark.parametrize("build", [functools.partial(build_factory, Named, "/ws"), headers_factory])
def test_a_factory_makes_handlers_of_the_headers(factory: object, build: Callable[[object], Factory]) -> None:
    handler = build(factory)(request())
    assert isinstance(handler, Named)
    assert handler.name == "Ada"
    assert type(handler) in (Named, FromHeaders)
    assert hooks_of(type(handler)) == TEXT


def test_a_class_with_create_is_instantiated_once() -> None:
    class Counting:
        def __init__(self) -> None:
            self.created = 0

        def create(self, headers: Headers) -> int:
            self.created += 1
            return self.created

    factory = headers_factory(Counting)
    assert [factory(request()), factory(request())] == [1, 2]


def test_a_callable_of_the_interpreter_is_taken_as_it_is() -> None:
    assert headers_factory(type)(request()) is Headers


class Broken:
    def __init__(self) -> None:
        raise OSError("no database")

    def create(self, headers: Headers) -> Named: ...  # type: ignore[empty-body]


class Needy:
    def __init__(self, database: object) -> None: ...

    def create(self, headers: Headers) -> Named: ...  # type: ignore[empty-body]


class AsyncMaker:
    async def create(self, headers: Headers) -> Named: ...  # type: ignore[empty-body]


class AsyncCallable:
    async def __call__(self, headers: Headers) -> Named: ...  # type: ignore[empty-body]


class Hungry:
    def create(self, headers: Headers, database: object) -> Named: ...  # type: ignore[empty-body]


async def async_factory(headers: Headers) -> Named:
    return Named.of(headers)


def no_factory() -> None: ...


BROKEN_FACTORIES: Final[dict[str, tuple[object, list[str]]]] = {
    "no callable": (3, ["type int", "callable of the headers", "`create(headers)`"]),
    "create is no callable": (type("Odd", (), {"create": 3})(), ["type Odd"]),
    "async function": (async_factory, ["async_factory(headers: ", "asynchronous", "plain `def`", "on_connect"]),
    "async create": (AsyncMaker, ["AsyncMaker.create(headers: ", "asynchronous"]),
    "async call": (AsyncCallable(), ["AsyncCallable", "asynchronous"]),
    "no parameter": (no_factory, ["no_factory()", "headers alone", "one parameter, `headers`"]),
    "too many parameters": (Hungry, ["Hungry.create", "headers alone"]),
    "too many parameters of an object": (Hungry(), ["Hungry.create", "headers alone"]),
    "class that needs something": (Needy, ["Needy", "without arguments", "'database'", "pass an instance"]),
    "class that fails": (Broken, ["Broken", "OSError: no database", "pass an instance"]),
}


@pytest.mark.parametrize(("factory", "words"), BROKEN_FACTORIES.values(), ids=BROKEN_FACTORIES)
def test_a_factory_that_cannot_work_is_refused(factory: object, words: list[str]) -> None:
    message = refusal(Named, factory=factory)
    assert [word for word in words if word not in message] == []
    with pytest.raises(HandlerError) as caught:
        headers_factory(factory)
    assert [word for word in words if word not in str(caught.value)] == []


def test_faults_of_hooks_and_factory_come_in_one_error() -> None:
    class Chat:
        def on_message(self, text: str) -> None: ...

    message = refusal(Chat, factory=no_factory)
    assert message.startswith("class Chat cannot handle WebSocket connections")
    assert message.count("\n  - ") == 2
    with pytest.raises(HandlerError, match="this factory cannot make handlers"):
        headers_factory(no_factory)
    with pytest.raises(HandlerError) as caught:
        build_factory(Chat, "/ws", Broken)
    assert str(caught.value).count("\n  - ") == 2
    assert isinstance(caught.value.__context__, OSError)


def test_with_a_factory_the_constructor_and_abstract_methods_are_its_own_affair() -> None:
    class Base:
        def __init__(self, database: object) -> None: ...

    class Shape(Base, ABC):
        @abstractmethod
        async def on_message(self, text: str) -> None: ...

    handler = Echo()
    assert build_factory(Shape, "/ws", always(handler))(request()) is handler
    assert build_factory(Named, "/ws", always(handler))(request()) is handler


def test_handlers_can_be_copied() -> None:
    handler: Any = build_factory(Named, "/{name}")(request(name="Ada"))
    assert copy.copy(handler).name == "Ada"
