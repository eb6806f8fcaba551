"""The generated factory: makes the handler instance of each connection, with everything computed beforehand.

Instances are made from a generated subclass, so the class itself stays as it was written. The subclass has
`HandlerMeta` for its metaclass and the default hooks in place of missing ones.
"""

from __future__ import annotations

import inspect
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from types import new_class
from typing import Any, Final, Protocol, TypeAlias, cast

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from wsdeco.definition.base import DEFAULT_HOOKS, Factory, Generated, HandlerMeta, inspected, source_of
from wsdeco.definition.checks import abstract_faults
from wsdeco.definition.faults import described, name_of, raise_faults
from wsdeco.definition.hooks import ARGUMENTS, defines
from wsdeco.definition.paths import parameter_kinds
from wsdeco.definition.signatures import (
    UNKNOWN,
    bindable,
    namespace_of,
    outcome_of,
    parameters_of,
    passes_on,
    resolve,
    signature_of,
)
from wsdeco.definition.supply import SUPPLIES, Supply, fault_of, path_supplies, request_supply, supplied_call
from wsdeco.reasons import HandlerError

__all__ = [
    "HandlerFactory",
    "SupportsCreate",
    "build_factory",
    "class_factory",
    "generated_from",
    "headers_factory",
]


class SupportsCreate(Protocol):
    """A factory that is an object."""

    def create(self, headers: Headers, /) -> object:
        """Return the handler of a connection whose handshake request has these headers."""
        ...


HandlerFactory: TypeAlias = Callable[[Headers], object] | SupportsCreate | type[SupportsCreate]
"""What users may write to make handlers by themselves."""


_SUPPLIES: Final = SUPPLIES | {"request": request_supply(HTTPConnection)}

_OTHERWISE: Final = "give it a default, or pass `factory=`"

_KEPT: Final = ARGUMENTS["on_connect"]
"""The attributes that the default `on_connect` sets."""


def build_factory(cls: type, path: str, factory: object | None = None) -> Factory:
    """Return what makes the handler instance of a connection on `path`.

    Args:
        cls: The handler class. Parameters of its `__init__` are filled by name, with `headers`, `query_params`,
            `request` and the parameters of `path`.
        path: The path of the route, as Starlette writes it.
        factory: Makes the instances instead, used as they are: a callable of the request's headers, or an object
            or a class with `create(headers)`.

    Raises:
        HandlerError: `cls` cannot handle connections, or nothing can make its instances; the error lists every fault.

    Warns:
        HandlerWarning: A mutable class attribute of `cls` is shared by all connections.
    """
    if factory is None:
        return class_factory(cls, parameter_kinds(path))
    # The class may be abstract: it says what the handlers of the factory look like, and is never instantiated.
    create = _creating(factory, partial(inspected, cls))
    return lambda connection: create(connection.headers)


def headers_factory(factory: object) -> Factory:
    """Return what makes the handler instance of a connection by `factory` alone.

    Args:
        factory: A callable of the request's headers, or an object or a class with `create(headers)`.

    Raises:
        HandlerError: `factory` cannot be called with the headers; the error lists every fault.
    """
    create = _creating(factory, partial(raise_faults, "this factory cannot make handlers"))
    return lambda connection: create(connection.headers)


def class_factory(cls: type, path_params: Mapping[str, type | None]) -> Factory:
    """Return what makes instances of the handler class `cls`, as `build_factory` does without `factory`.

    Args:
        cls: The handler class.
        path_params: The path parameters, each with the class of its values or `None` if that is not known.

    Raises:
        HandlerError: `cls` cannot handle connections, or nothing can make its instances; the error lists every fault.
    """
    constructor = _constructor_of(cls)
    supplies = _SUPPLIES | path_supplies(path_params)
    inspected(cls, abstract_faults(cls), _attribute_faults(cls), _constructor_faults(cls, constructor, supplies))
    return supplied_call(_generate(cls), parameters_of(constructor), supplies)


def generated_from(cls: type) -> type | None:
    """Return the class that the instances of the handler class `cls` have; `None` if none was generated from it."""
    subclasses: list[type] = type.__subclasses__(cls)
    return next((each for each in reversed(subclasses) if source_of(each) is cls), None)


def _constructor_of(cls: type) -> inspect.Signature:
    """Return how `cls` is called.

    A metaclass, `__new__` or `__init__` that passes everything on leaves the word to the next of the three.
    """
    signature = signature_of(cls)
    for name in ("__new__", "__init__"):
        if signature is not None and passes_on(signature):
            signature = signature_of(getattr(cls, name), bound=True)
    return inspect.Signature() if signature is None else signature


def _constructor_faults(cls: type, signature: inspect.Signature, supplies: Mapping[str, Supply]) -> Iterator[str]:
    for parameter in parameters_of(signature):
        annotation = _resolved(cls, parameter.annotation)
        fault = fault_of(parameter, annotation, supplies.get(parameter.name), supplies, _OTHERWISE)
        if fault is not None:
            yield f"{name_of(cls)}{signature.replace(return_annotation=UNKNOWN)} {fault}"


def _resolved(cls: Any, annotation: object) -> object:
    """Return what an annotation of the constructor stands for, whichever of two functions it was written at."""
    namespaces = (cast("dict[str, object]", namespace_of(maker)) for maker in (cls.__init__, cls.__new__))
    return resolve(annotation, ChainMap(*namespaces), extras=True)


def _attribute_faults(cls: type) -> Iterator[str]:
    if defines(cls, "on_connect"):
        return
    for name in _KEPT:
        raw: object = inspect.getattr_static(cls, name, None)
        if isinstance(raw, property) and raw.fset is None:
            yield (
                f"its property `{name}` has no setter, and the default on_connect sets `self.{name}`: "
                f"rename the property, or write `async def on_connect(self, addr, sink)`"
            )


def _generate(cls: type) -> type:
    namespace: dict[str, object] = {name: getattr(cls, name) for name in ("__doc__", "__module__", "__qualname__")}
    defined = {name for base in cls.__mro__ for name in vars(base)}
    namespace |= {name: hook for name, hook in DEFAULT_HOOKS.items() if name not in defined}
    if not cls.__dictoffset__ and not cls.__itemsize__:
        namespace["__slots__"] = [name for name in _KEPT if not _has_setter(cls, name)]
    try:
        metaclass = _handler_metaclass(type(cls))
        return new_class(cls.__name__, (Generated, cls), {"metaclass": metaclass}, lambda body: body.update(namespace))
    except Exception as exc:
        raise HandlerError(
            f"the metaclass {type(cls).__name__} of class {name_of(cls)} does not let a subclass be made, which "
            f"wsdeco does to make instances ({type(exc).__name__}: {exc}): pass `factory=` to make them yourself"
        ) from exc


def _has_setter(cls: type, name: str) -> bool:
    raw: object = inspect.getattr_static(cls, name, None)
    return hasattr(type(raw), "__set__")


@lru_cache(maxsize=64)
def _handler_metaclass(kind: type[type]) -> type[type]:
    if issubclass(HandlerMeta, kind):
        return HandlerMeta
    if issubclass(kind, HandlerMeta):
        return kind
    return new_class(f"Handler{kind.__name__}", (HandlerMeta, kind))


def _creating(factory: object, check: Callable[[Iterable[str]], object]) -> Any:
    """Return what is called with the headers; a class that has it as a method is instantiated for that.

    Args:
        factory: What makes the handlers.
        check: Raises an error that lists the faults of the factory, and others, if there are any.
    """
    maker = factory
    if isinstance(factory, type):
        raw: object = inspect.getattr_static(factory, "create", None)
        if raw is not None and not isinstance(raw, staticmethod | classmethod):
            try:
                maker = factory()
            except Exception as exc:
                # Checked here, so that the error tells of the exception as well.
                fault = f"cannot be made without arguments ({type(exc).__name__}: {exc}): pass an instance of it"
                check([f"factory {name_of(factory)} {fault}"])
    create: object = getattr(maker, "create", maker)
    check(_factory_faults(maker, create))
    return create


def _factory_faults(factory: object, create: object) -> Iterator[str]:
    if not callable(create):
        kind = name_of(type(factory))
        yield f"factory of type {kind} cannot be called: pass a callable of the headers, or what has `create(headers)`"
        return
    label = f"factory {described(name_of(create), create)}"
    if outcome_of(create, None).running != "plain":
        yield f"{label} is asynchronous: write it with a plain `def`, and await what must be awaited in on_connect"
    if not bindable(signature_of(create), 1):
        yield f"{label} cannot be called with the headers alone: give it one parameter, `headers`"
