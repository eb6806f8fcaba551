"""The two forms of the package: what tells them apart, and what must not."""

import gc
import inspect
from types import FunctionType
from typing import Any

import pytest

import wsdeco
from tests.support.in_memory import Session
from wsdeco.channels.base import Channel
from wsdeco.channels.direct import DirectChannel
from wsdeco.compiled import mypyc_attr
from wsdeco.transport.protocol import WebSocketProtocol
from wsdeco.wire.incoming import Framing
from wsdeco.wire.outgoing import encode_message


def test_it_is_told_which_form_runs() -> None:
    assert wsdeco.COMPILED is not isinstance(encode_message, FunctionType)


def test_what_is_said_to_the_compiler_changes_nothing_in_python() -> None:
    class Plain:
        pass

    assert mypyc_attr(allow_interpreted_subclasses=True)(Plain) is Plain


@pytest.mark.parametrize("base", [Channel, DirectChannel, Framing, WebSocketProtocol])
def test_classes_can_be_derived_from(base: type) -> None:
    assert issubclass(type("Derived", (base,), {}), base)


async def test_the_collector_sees_what_is_kept_once() -> None:
    session = Session(wsdeco.App())
    assert [each for each in gc.get_referents(session.protocol) if each is session.transport] == [session.transport]
    assert gc.is_tracked(session.protocol)
    assert not hasattr(session.protocol, "__dict__")
    await session.end()


@pytest.mark.parametrize("function", [encode_message, Framing.receive, WebSocketProtocol.accept])
def test_functions_keep_their_signatures(function: Any) -> None:
    assert inspect.signature(function).parameters
