"""Whether the hot modules are compiled, and what their source says to the compiler (mypyc).

One source, two forms with one behaviour: a checkout and the sdist are pure Python, published wheels hold the modules
that each message passes as extensions besides.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:
    from collections.abc import Callable

    T = TypeVar("T")

    def mypyc_attr(**_: Any) -> Callable[[T], T]:
        """Return the class as it is: only the compiler reads what is asked of it."""
        return lambda cls: cls


__all__ = ["COMPILED", "FORM", "mypyc_attr"]

COMPILED: Final[bool] = find_spec("wsdeco._compiled__mypyc") is not None
"""Whether the modules that each message passes are compiled: so they are in a wheel made with `WSDECO_COMPILE=1`."""

FORM: Final = "compiled" if COMPILED else "pure Python"
"""The form of the hot modules, in words."""
