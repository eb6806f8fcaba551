"""The shape of the package: which module may import which, and what every module has."""

import ast
import graphlib
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from tests.support.checkout import CHECKOUT

PACKAGE: Final = CHECKOUT / "wsdeco"

MAX_LINES_OF_CODE: Final = 400

WORDS: Final = frozenset(
    {"compiled", "config", "reasons", "clock", "origins", "messages", "rates", "tokens", "tracebacks", "values"}
)
"""Modules that all may import, and that import only each other."""

ALLOWED: Final[dict[str, set[str]]] = {
    "app": {"routing", "definition", "channels", "rooms"},
    "cli": {"server", "routing", "__init__"},
    "launch": {"workers", "server", "routing"},
    "workers": {"server", "routing", "connection", "backplanes", "rooms"},
    "server": {"routing"},
    "routing": {"connection", "definition", "channels", "rooms", "backplanes"},
    "console": {"describe", "routing"},
    "describe": {"routing", "definition"},
    "observe": {"routing", "channels", "rooms", "backplanes/interface"},
    "connection": {"definition", "channels", "rooms"},
    "definition": {"channels"},
    "typed": {"channels"},
    "rooms": {"channels", "wire", "backplanes/interface"},
    "testing": {"routing", "definition", "channels", "backplanes/interface"},
    "channels": {"wire"},
    "transport": {"wire"},
    "backplanes": set(),
    "wire": set(),
    "protocol": {"transport"},
    "http": {"transport"},
    "compiled": set(),
    "config": {"origins", "reasons"},
    "reasons": set(),
    "clock": set(),
    "messages": set(),
    "origins": set(),
    "rates": set(),
    "tokens": set(),
    "tracebacks": set(),
    "values": set(),
    "__main__": {"cli"},
    "__pyinstaller": set(),
    "_compile": set(),
    "__init__": {"app", "routing", "definition", "channels", "rooms", "backplanes", "server"},
}
"""What each place may import from others, besides the words. A place is a folder, or a module at the top.

Arrows go down only. Imports for type checkers count like all others.
"""

LAZILY: Final[dict[tuple[str, str], str]] = {
    ("__init__", "server/background"): "__getattr__",
    ("app", "launch"): "_launch",
    ("app", "observe/connections"): "App.connections",
    ("app", "observe/numbers"): "App.stats",
    ("observe/pages", "observe/metrics"): "pages",
    ("routing/application", "observe/pages"): "Application._add_pages",
    ("routing/application", "observe/traces"): "Application._trace",
    ("server/options", "http"): "make_server",
    ("server/options", "observe/logs"): "make_server",
    ("server/options", "protocol"): "make_server",
    ("workers/run", "observe/numbers"): "_recycling",
    ("workers/run", "observe/together"): "_counting_together",
    ("backplanes/choice", "backplanes/urls"): "_open_backplane",
    ("backplanes/urls", "backplanes/nats"): "_nats",
    ("backplanes/urls", "backplanes/redis"): "_redis",
    ("cli/asyncapi", "describe/document"): "command",
    ("cli/connect", "cli/conversation"): "command",
    ("cli/routes", "server/banner"): "command",
    ("cli/run", "launch"): "command",
    ("cli/run", "server/options"): "command",
    ("definition/types", "typed/dialogue"): "_typed",
    ("describe/messages", "typed/kinds"): "_kinds",
    ("routing/not_found", "console/serving"): "NotFound.__call__",
    ("testing/client", "testing/forms"): "Client._forms",
    ("testing/forms", "typed/codecs"): "Forms.__init__",
    ("testing/forms", "typed/writer"): "Forms.__init__",
    ("testing/forms", "typed/reader"): "Forms.read",
    ("testing/handshake", "testing/live"): "connect",
    ("testing/live", "http"): "_server_of",
    ("testing/live", "protocol"): "_server_of",
}
"""Imports that wait for a call: (importer, imported), and the one function they may stand in.

The type of what the function returns may be imported for type checkers besides.
"""

PATCHED: Final = {
    "_PAUSES_AFTER_WRITELINES": "what asyncio does depends on the Python that runs the tests",
}
"""Private names of the package that a test may set, and why."""

FOLDERS: Final = frozenset(path.parent.name for path in PACKAGE.glob("*/__init__.py"))

NO_EXPORTS: Final = frozenset({"__main__", *(f"{folder}/__init__" for folder in FOLDERS - {"testing"})})
"""Modules without an `__all__`: one is run and not imported, the others say what their folder is."""


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
    """Return the modules of the package by their name below it; PyInstaller's hooks are files that it reads."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("hook-")]
    return {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in paths}


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
    return isinstance(node, ast.If) and ast.unparse(node.test) in {
        "TYPE_CHECKING",
        "_TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    }


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


def place_of(module: str) -> str:
    """Return the folder of a module, or the module itself where it stands at the top."""
    return module.partition("/")[0]


def is_allowed(found: Import) -> bool:
    function = LAZILY.get((found.importer, found.imported))
    if function is not None:
        return found.typing_only or found.scope == function
    importer, imported = place_of(found.importer), place_of(found.imported)
    return importer == imported or bool({imported, found.imported} & (ALLOWED[importer] | (WORDS - {importer})))


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
    place = place_of(module)
    assert place in ALLOWED, f"wsdeco/{place} is new: say in ALLOWED what it may import from wsdeco"
    found = walk_imports(module, parsed(modules()[module]))
    refused = [str(each) for each in found if not is_allowed(each)]
    if refused:
        advice = "move what is shared to a place both may import, or change ALLOWED and say why"
        pytest.fail("\n  ".join([f"{advice}:", *refused]), pytrace=False)


def test_the_table_names_no_place_that_is_gone() -> None:
    named = {*ALLOWED, *(name for allowed in ALLOWED.values() for name in allowed)}
    named |= {name for pair in LAZILY for name in pair}
    assert sorted(named - set(modules()) - FOLDERS) == []


def test_lazy_imports_are_still_needed() -> None:
    found = {
        (each.importer, each.imported): each.scope
        for name, path in modules().items()
        for each in walk_imports(name, parsed(path))
        if not each.typing_only and (each.importer, each.imported) in LAZILY
    }
    assert found == LAZILY


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        name: {each.imported for each in walk_imports(name, parsed(path)) if not each.typing_only}
        for name, path in modules().items()
    }
    assert_no_circle(graph)


def test_no_place_imports_itself_through_others() -> None:
    assert_no_circle({place: {place_of(each) for each in allowed} for place, allowed in ALLOWED.items()})


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle: list[str] = error.args[1]
        pytest.fail("an import circle: " + " -> ".join(reversed(circle)))


def defined_in(node: ast.AST, prefix: str = "") -> Iterator[str]:
    """Yield the qualified names of the functions and classes below `node`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + child.name
            yield from defined_in(child, f"{prefix}{child.name}.")


def test_the_page_on_the_architecture_names_what_there_is() -> None:
    page = (CHECKOUT / "wsdeco" / "README.md").read_text("utf-8")
    named = re.findall(r"`([a-z_/]+)\.py`:\s+`([A-Za-z_.]+)`", page)
    assert len(named) > 20
    assert [each for each in named if each[1] not in defined_in(parsed(modules()[each[0]]))] == []


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


def test_no_coroutine_is_compiled() -> None:
    hook = parsed(modules()["_compile"])
    (names,) = [
        ast.literal_eval(node.value)
        for node in hook.body
        if isinstance(node, ast.AnnAssign) and node.value is not None and ast.unparse(node.target) == "_MODULES"
    ]
    assert len(names) > 5
    for name in names:
        awaits = [
            ast.unparse(node)
            for node in ast.walk(parsed(modules()[name]))
            if isinstance(node, ast.Await | ast.YieldFrom)
        ]
        assert awaits == [], name


def test_no_test_sets_a_private_name_of_the_package() -> None:
    """It would break with a move, and says nothing of how the package is used: bounds and times are arguments."""
    private = re.compile(
        r"""setattr\(\s*(?!os, )(?:[\w.]+, )?["'](?:wsdeco[\w.]*\.)?(_[A-Za-z]\w*)|\w\.(_[A-Z]\w*) =[^=]"""
    )
    found = {
        f"{path.name}: {name}"
        for path in (CHECKOUT / "tests").rglob("*.py")
        for match in private.finditer(path.read_text("utf-8"))
        if (name := match[1] or match[2]) not in PATCHED and path != Path(__file__)
    }
    assert sorted(found) == []
