"""Tracebacks for the log: lines of code as they are, and the texts of exceptions, which peers may choose, printable."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from traceback import TracebackException
from types import TracebackType
from typing import Any, Final, TypeAlias

from wsdeco.reasons import printable

__all__ = ["PRINTABLE_TRACEBACKS", "printable_traceback"]

_ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]


def printable_traceback(exc_info: _ExcInfo) -> str:
    """Return what `traceback` makes of an exception, with its texts and notes in one short line each."""
    report = TracebackException(*exc_info, compact=True)
    for each in _all_of(report):
        if each.__notes__ is not None:
            each.__notes__ = [printable(str(note)) for note in each.__notes__]
        vars(each)["format_exception_only"] = _Printable(each.format_exception_only)
    return "".join(report.format()).removesuffix("\n")


def _all_of(report: TracebackException) -> Iterator[TracebackException]:
    """Yield an exception, its causes and contexts, and those of its group."""
    left: list[TracebackException | None] = [report]
    while left:
        each = left.pop()
        if each is not None:
            yield each
            left += (each.__cause__, each.__context__, *(getattr(each, "exceptions", None) or ()))


class _Printable:
    """Stands in for a method that yields lines, each of them with its end."""

    def __init__(self, lines: Any) -> None:
        self._lines = lines

    def __call__(self, *arguments: Any, **options: Any) -> Iterator[str]:
        found: Iterable[str] = self._lines(*arguments, **options)
        return (printable(line.removesuffix("\n")) + "\n" for line in found)


class _PrintableTracebacks(logging.Filter):
    """Formats tracebacks before a formatter does, and lets handlers have the exception."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass."""
        info = record.exc_info
        if info is not None and info[0] is not None and not record.exc_text:
            record.exc_text = printable_traceback(info)
        return True


PRINTABLE_TRACEBACKS: Final = _PrintableTracebacks()
"""For the loggers that get exceptions of hooks and apps."""
