"""The shape of the package: which module may import which, and what every module has."""

import ast
import graphlib
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).parent.parent / "wsdeco"

MAX_LINES_OF_CODE: Final = 410

ALLOWED: Final[dict[str, set[str]]] = {
    "reasons": set(),
    "origins": set(),
    "clock": set(),
    "signatures": set(),
    "paths": {"reasons", "signatures"},
    "config": {"reasons", "origins"},
    "request": {"handshake"},
    "channel": {"reasons", "clock", "config", "encoding", "request"},
    "asgi": {"reasons", "clock", "config", "channel"},
    "direct": {"reasons", "clock", "config", "request", "channel", "encoding", "handshake"},
    "encoding": {"reasons"},
    "deflate": {"encoding"},
    "frames": {"reasons", "deflate", "encoding"},
    "handshake": {"reasons"},
    "keepalive": {"clock"},
    "conversation": {"reasons", "frames", "handshake", "request"},
    "consumer": {"reasons", "frames"},
    "turn": {"clock", "keepalive"},
    "protocol": {
        *("reasons", "clock", "deflate", "frames", "handshake", "keepalive", "consumer", "conversation", "turn"),
        "encoding",
    },
    "http": {"clock", "handshake", "protocol"},
    "hooks": {"reasons", "signatures", "channel"},
    "handler": {"reasons", "signatures", "channel", "hooks"},
    "factory": {"reasons", "signatures", "paths", "channel", "hooks", "handler"},
    "lifecycle": {"reasons", "clock", "config", "channel", "direct", "hooks", "handler", "factory"},
    "totals": {"reasons"},
    "connections": {"lifecycle", "totals"},
    "upgrade": {
        *("reasons", "origins", "clock", "paths", "config", "channel", "asgi", "direct", "hooks", "handler", "factory"),
        *("lifecycle", "connections", "rooms"),
    },
    "backplanes/__init__": set(),
    "backplanes/interface": set(),
    "backplanes/checks": {"backplanes/interface"},
    "backplanes/memory": {"backplanes/interface"},
    "backplanes/envelope": set(),
    "backplanes/broker": {"reasons", "clock", "backplanes/interface", "backplanes/envelope"},
    "backplanes/nats": {"backplanes/broker"},
    "backplanes/redis": {"backplanes/broker"},
    "backplanes/urls": {"reasons", "backplanes/interface", "backplanes/broker"},
    "rooms": {"reasons", "channel", "encoding", "backplanes/interface"},
    "routes": {"reasons", "signatures", "hooks", "paths", "asgi", "upgrade", "rooms"},
    "app": {
        *("reasons", "clock", "signatures", "paths", "config", "channel", "asgi", "direct", "handler", "factory"),
        *("lifecycle", "connections", "upgrade", "routes", "rooms", "backplanes/interface"),
    },
    "server/__init__": set(),
    "server/listen": {"reasons"},
    "server/serving": {"reasons", "config", "app", "server/listen"},
    "server/options": {"reasons", "app", "server/listen", "server/serving"},
    "server/banner": {"config", "app", "server/serving"},
    "server/foreground": {"server/serving"},
    "server/background": {"reasons", "app", "server/banner", "server/options", "server/serving"},
    "server/orphans": set(),
    "server/loading": {"reasons", "app", "server/orphans"},
    "server/supervisor": {"reasons", "server/orphans", "server/foreground"},
    "server/nats_server": {"reasons"},
    "server/cluster": {"app", "rooms", "backplanes/interface", "backplanes/urls", "server/nats_server"},
    "server/workers": {
        *("reasons", "app", "connections", "totals", "server/banner", "server/cluster", "server/foreground"),
        *("server/listen", "server/loading", "server/options", "server/supervisor"),
    },
    "server/launch": {
        *("reasons", "app", "server/background", "server/banner", "server/foreground", "server/loading"),
        *("server/options", "server/serving", "server/workers"),
    },
    "cli": {"server/loading", "__init__"},
    "__main__": {"cli"},
    "testing": {
        *("reasons", "clock", "config", "channel", "asgi", "handler", "factory", "lifecycle", "connections"),
        *("upgrade", "app", "backplanes/checks", "backplanes/memory"),
    },
    "__init__": {
        *("reasons", "config", "channel", "handler", "upgrade", "app", "rooms", "backplanes/interface"),
        "server/orphans",
    },
}
"""What each module may import from wsdeco. Imports for type checkers only count like all others."""

LAZILY: Final[dict[tuple[str, str], str]] = {
    ("app", "server/launch"): "App.run",
    ("app", "backplanes/urls"): "_open_backplane",
    ("backplanes/urls", "backplanes/nats"): "_nats",
    ("backplanes/urls", "backplanes/redis"): "_redis",
    ("cli", "server/launch"): "_run",
    ("cli", "server/options"): "_run",
}
"""Imports that wait for a call: (importer, imported), and the one function they may stand in.

The type of what the function returns may be imported for type checkers besides.
"""

NO_EXPORTS: Final = frozenset({"__main__", "backplanes/__init__", "server/__init__"})
"""Modules without an `__all__`: one is run and not imported, the others say what is in their folder."""


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    line: int
    scope: str
    """Qualified name of the function the import stands in, empty at module level."""
    typing_only: bool

    def __str__(self) -> str:
        where = f" in {self.scope}" if self.scope else ""
        return f"wsdeco/{self.importer}.py:{self.line} imports wsdeco.{self.imported}{where}"


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def modules() -> dict[str, Path]:
    """Return the modules of the package by their name below it."""
    return {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def module_of(dotted: str) -> str:
    """Return the module of wsdeco that a dotted name is, or is in."""
    path = dotted.removeprefix("wsdeco").removeprefix(".").replace(".", "/")
    found = modules()
    return next(name for name in (path, f"{path}/__init__".removeprefix("/"), path.rpartition("/")[0]) if name in found)


def imported_modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return which modules of wsdeco a statement imports; relative imports are refused by the linter."""
    if isinstance(node, ast.Import):
        return [module_of(alias.name) for alias in node.names if alias.name.partition(".")[0] == "wsdeco"]
    source = node.module or ""
    if source.partition(".")[0] != "wsdeco":
        return []
    names = [f"{source}.{alias.name}".removeprefix("wsdeco.").replace(".", "/") for alias in node.names]
    return [name if name in modules() else module_of(source) for name in names]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def walk_imports(importer: str, node: ast.AST, scope: str = "", *, typing_only: bool = False) -> Iterator[Import]:
    """Yield every import of a module of wsdeco below `node`, with the function it stands in."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import() | ast.ImportFrom():
                for imported in imported_modules(child):
                    yield Import(importer, imported, child.lineno, scope, typing_only)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                inner = f"{scope}.{name}" if scope else name
                yield from walk_imports(importer, child, inner, typing_only=typing_only)
            case _:
                hidden = typing_only or is_type_checking(child)
                yield from walk_imports(importer, child, scope, typing_only=hidden)


def is_allowed(found: Import) -> bool:
    if found.imported in ALLOWED[found.importer]:
        return True
    function = LAZILY.get((found.importer, found.imported))
    return function is not None and (found.typing_only or found.scope == function)


def lines_of_code(path: Path) -> int:
    """Return the number of lines that are not blank, a comment or a docstring."""
    texts = {
        line
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline)
        if token.type not in blank
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(code - texts)


def exported(path: Path) -> list[str] | None:
    """Return the names in `__all__`, or `None` where a module has none."""
    for node in parsed(path).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


@pytest.fixture(params=modules())
def module(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_each_module_imports_only_what_the_table_allows(module: str) -> None:
    assert module in ALLOWED, f"wsdeco/{module}.py is new: say in ALLOWED what it may import from wsdeco"
    found = walk_imports(module, parsed(modules()[module]))
    refused = [str(each) for each in found if not is_allowed(each)]
    if refused:
        advice = "move what is shared to a module both may import, or change ALLOWED and say why"
        pytest.fail("\n  ".join([f"{advice}:", *refused]), pytrace=False)


def test_the_table_names_no_module_that_is_gone() -> None:
    named = {*ALLOWED, *(name for allowed in ALLOWED.values() for name in allowed)}
    named |= {name for pair in LAZILY for name in pair}
    assert sorted(named - set(modules())) == []


def test_lazy_imports_are_still_needed() -> None:
    found = {
        (each.importer, each.imported): each.scope
        for name, path in modules().items()
        for each in walk_imports(name, parsed(path))
        if not each.typing_only and (each.importer, each.imported) in LAZILY
    }
    assert found == LAZILY


def test_no_module_imports_itself_through_others() -> None:
    try:
        graphlib.TopologicalSorter(ALLOWED).prepare()
    except graphlib.CycleError as error:
        cycle: list[str] = error.args[1]
        pytest.fail("ALLOWED has an import cycle: " + " -> ".join(reversed(cycle)))


def test_each_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(parsed(modules()[module])) is not None


def test_each_module_says_what_it_exports(module: str) -> None:
    names = exported(modules()[module])
    if module in NO_EXPORTS:
        assert names is None
        return
    assert names is not None, f"wsdeco/{module}.py needs an __all__"
    assert names != []
    assert len(set(names)) == len(names)


def test_each_module_can_be_read_in_one_go(module: str) -> None:
    assert lines_of_code(modules()[module]) <= MAX_LINES_OF_CODE, "split it by concern"
