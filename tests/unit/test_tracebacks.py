"""A traceback in the log: code as it is, texts of exceptions printable and short."""

import io
import json
import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Final, NoReturn

import pytest

from wsdeco.observe.json_format import JsonFormatter
from wsdeco.tracebacks import PRINTABLE_TRACEBACKS, printable_traceback

FORGED: Final = "x\r\nINFO:     admin logged in\n\x1b[2J\u202e"
ESCAPED: Final = "x\\r\\nINFO:     admin logged in\\n\\x1b[2J\\u202e"


def raises_plainly() -> NoReturn:
    raise ValueError(FORGED)


def raises_from_a_cause() -> NoReturn:
    try:
        raises_plainly()
    except ValueError as exc:
        raise KeyError(FORGED) from exc


def raises_while_handling() -> NoReturn:
    try:
        raises_plainly()
    except ValueError:
        raise RuntimeError(FORGED)  # noqa: B904


def raises_a_group() -> NoReturn:
    try:
        raises_plainly()
    except ValueError as exc:
        raise ExceptionGroup(FORGED, [exc, OSError(FORGED)])  # noqa: B904


def raises_with_a_note() -> NoReturn:
    try:
        raises_plainly()
    except ValueError as exc:
        exc.add_note(FORGED)
        raise


def raises_for_its_code() -> NoReturn:
    compile(f"1 +* {FORGED!r}", FORGED, "exec")
    raise AssertionError


def raises_at_length() -> NoReturn:
    raise ValueError(FORGED + "x" * 1_000_000)


RAISING: Final = [
    raises_plainly,
    raises_from_a_cause,
    raises_while_handling,
    raises_a_group,
    raises_with_a_note,
    raises_for_its_code,
    raises_at_length,
]


def caught(raising: Callable[[], NoReturn]) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    try:
        raising()
    except Exception as exc:
        return type(exc), exc, exc.__traceback__


@pytest.mark.parametrize("raising", RAISING)
def test_a_text_that_a_peer_has_chosen_forges_no_line(raising: Callable[[], NoReturn]) -> None:
    text = printable_traceback(caught(raising))
    lines = text.split("\n")
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    assert not any(line.lstrip(" |+-").startswith("INFO") for line in lines)
    assert lines[0].endswith("Traceback (most recent call last):")
    # The code stays readable.
    assert any(line.lstrip(" |") == "raising()" for line in lines)


def test_a_traceback_says_what_that_of_python_says() -> None:
    def raising() -> NoReturn:
        try:
            int("x")
        except ValueError as exc:
            raise KeyError("plain") from exc
        raise AssertionError

    info = caught(raising)
    assert printable_traceback(info) == logging.Formatter().formatException(info)
    assert ESCAPED in printable_traceback(caught(raises_plainly))


@pytest.mark.parametrize("formatter", [logging.Formatter(), JsonFormatter()])
def test_whatever_formats_the_record(formatter: logging.Formatter) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("one")  # noqa: LOG001
    logger.addHandler(handler)
    logger.addFilter(PRINTABLE_TRACEBACKS)
    try:
        raises_plainly()
    except ValueError:
        logger.exception("failed")
    logger.error("nothing raised", exc_info=sys.exc_info())
    written = stream.getvalue()
    assert "\r" not in written
    assert "\x1b" not in written
    assert "admin logged in" in written
    if isinstance(formatter, JsonFormatter):
        assert json.loads(written.splitlines()[0])["exception"].endswith(f"ValueError: {ESCAPED}")
