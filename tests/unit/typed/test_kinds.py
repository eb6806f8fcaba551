"""Types that JSON has no form for, and frames that hold no message."""

from dataclasses import make_dataclass
from fractions import Fraction
from typing import Any, Literal

import pytest

from wsdeco.typed.codecs import format_of
from wsdeco.typed.kinds import decode_hook, faults
from wsdeco.typed.reader import Reader


def test_a_type_that_no_library_decodes_is_refused_by_name() -> None:
    with pytest.raises(NotImplementedError):
        decode_hook(Fraction, "1/2")


def test_a_type_that_cannot_be_decoded_is_named_with_the_reason() -> None:
    half: Any = Literal[0.5]
    (fault,) = faults(make_dataclass("Half", [("value", half)]))
    assert "cannot be decoded (" in fault


def test_a_frame_that_holds_no_message_has_no_number() -> None:
    assert Reader(int, format_of("json")).number_of('{"id": ') is None
