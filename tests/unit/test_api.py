"""The public names: which there are, that each is documented as the house does it, and annotated."""

import ast
import builtins
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

import pytest

import wsdeco
import wsdeco.testing
from tests.support.checkout import CHECKOUT
from wsdeco import launch

ROOT: Final = CHECKOUT

PUBLIC: Final = (wsdeco, wsdeco.testing)
"""The modules that users import from."""

SECTIONS: Final = ("Args", "Attributes", "Raises", "Returns", "Warns", "Yields")


@dataclass(frozen=True)
class Documented:
    """A public class, function, method or property."""

    name: str
    target: Any

    @property
    def function(self) -> Callable[..., Any] | None:
        """What is called; `None` for a class."""
        if isinstance(self.target, type):
            return None
        found: Any = self.target.fget if isinstance(self.target, property) else self.target
        return cast("Callable[..., Any]", inspect.unwrap(getattr(found, "__func__", found)))

    @property
    def parameters(self) -> list[inspect.Parameter]:
        function = self.function
        if function is None:
            return []
        return [each for each in inspect.signature(function).parameters.values() if each.name != "self"]

    @property
    def text(self) -> str:
        """The docstring."""
        return inspect.cleandoc(self.target.__doc__ or "")

    def section(self, name: str) -> list[str] | None:
        """Return the names that a section of the docstring lists; `None` where there is no such section."""
        found = re.search(rf"^{name}:\n((?:    .*\n|\n)*)", self.text + "\n", re.MULTILINE)
        return None if found is None else re.findall(r"^    (\**[\w.]+): ", found[1], re.MULTILINE)


def public_names() -> Iterator[Documented]:
    for module in PUBLIC:
        for name in module.__all__:
            target = getattr(module, name)
            if isinstance(target, type) or inspect.isroutine(target):
                yield Documented(f"{module.__name__}.{name}", target)
            if isinstance(target, type):
                yield from public_members(f"{module.__name__}.{name}", target)


def public_members(prefix: str, cls: type) -> Iterator[Documented]:
    documented = ("__init__", "__call__", "__len__", "__aenter__", "__aexit__")
    is_dataclass = dataclasses.is_dataclass(cast(object, cls))
    for name, member in vars(cls).items():
        generated = name == "__init__" and is_dataclass and "Args:" not in (member.__doc__ or "")
        if name.startswith("_") and (name not in documented or generated):
            continue
        if isinstance(member, property) or getattr(member, "__module__", "").startswith("wsdeco"):
            yield Documented(f"{prefix}.{name}", member)


EVERYTHING: Final = list(public_names())


@pytest.fixture(params=EVERYTHING, ids=lambda documented: documented.name)
def public(request: pytest.FixtureRequest) -> Documented:
    found: Documented = request.param
    return found


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_all_lists_what_is_there_in_order(module: ModuleType) -> None:
    listed: list[str] = module.__all__
    assert listed == sorted(listed, key=lambda name: (not name.isupper(), name))
    assert len(set(listed)) == len(listed)
    assert [name for name in listed if not hasattr(module, name)] == []


def test_nothing_public_is_left_out_of_all() -> None:
    modules = {name.partition(".")[2] for name in sys.modules if name.startswith("wsdeco.")}
    # pytest puts names of its own into modules of an installed plugin.
    public = {name for name in vars(wsdeco) if not name.startswith(("_", "@"))}
    assert public - modules - set(wsdeco.__all__) == set()


def test_a_star_import_brings_the_public_names_and_no_others() -> None:
    namespace: dict[str, object] = {}
    exec("from wsdeco import *", namespace)  # noqa: S102 - as a notebook does
    assert set(namespace) - {"__builtins__"} == set(wsdeco.__all__)


def test_what_run_returns_has_a_public_name() -> None:
    assert wsdeco.BackgroundServer is launch.BackgroundServer
    missing = "Background"
    with pytest.raises(AttributeError, match="module 'wsdeco' has no attribute 'Background'"):
        getattr(wsdeco, missing)


def test_public_errors_have_one_base_and_a_builtin_one() -> None:
    names: list[str] = wsdeco.__all__
    errors = [each for name in names if isinstance(each := getattr(wsdeco, name), type) and issubclass(each, Exception)]
    own = [each for each in errors if not issubclass(each, Warning)]
    assert all(issubclass(each, wsdeco.WsdecoError) for each in own)
    wrong_use = {wsdeco.HandlerError: TypeError, wsdeco.RouteError: ValueError, wsdeco.ServerError: RuntimeError}
    assert all(issubclass(each, builtin) for each, builtin in wrong_use.items())


def documentation() -> str:
    return (ROOT / "README.md").read_text("utf-8")


def imported_names(text: str, module: str) -> set[str]:
    """Return what the Python examples in a document import from a module."""
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in nodes if node.module == module for alias in node.names}


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_what_the_readme_imports_is_public(module: ModuleType) -> None:
    names = imported_names(documentation(), module.__name__)
    assert names != set()
    assert names - set(module.__all__) == set()


def test_the_readme_names_the_public_functions_and_classes_of_the_main_module() -> None:
    text = documentation()
    expected = {
        *("App", "Close", "ConnectionClosed", "ConnectionConfig", "DisconnectReason", "Error", "Sink", "Timeout"),
        *(
            "Unknown",
            "WebSocketHandler",
            "WebSocketUpgrade",
            "handle_socket",
            "handle_upgrade",
            "websocket_route",
            "ws",
        ),
    }
    assert expected <= set(wsdeco.__all__)
    assert sorted(name for name in expected if not re.search(rf"\b{name}\b", text)) == []


# Docstrings.


def test_it_is_documented(public: Documented) -> None:
    if public.name.endswith("__init__") and public.parameters == []:
        return
    if public.name.endswith("__init__") and public.target.__doc__ is None:
        # The docstring of the class says it, as it does for `ConnectionConfig`.
        cls = next(each.target for each in EVERYTHING if each.name == public.name.removesuffix(".__init__"))
        assert cls.__doc__
        return
    assert public.text, f"{public.name} needs a docstring"
    first = public.text.splitlines()[0]
    assert first.endswith((".", ":")), f"the first line of {public.name} is no sentence"
    assert first[0] == first[0].upper()


def test_args_are_the_parameters(public: Documented) -> None:
    listed = public.section("Args")
    if isinstance(public.target, type):
        assert listed is None, "a class has Attributes; its __init__ has Args"
        return
    names = [each.name for each in public.parameters]
    if listed is not None:
        assert [name.lstrip("*") for name in listed] == names
    elif not public.name.endswith("__"):
        assert len(names) <= 2, "a sentence can say what two parameters are, and more need Args"


def test_what_is_raised_is_listed(public: Documented) -> None:
    function = public.function
    if function is None:
        return
    listed = [name.rpartition(".")[2] for name in public.section("Raises") or []]
    assert [name for name in listed if not is_exception(name, function)] == []
    assert raised_by(function) - set(listed) == set()


def is_exception(name: str, function: Callable[..., Any]) -> bool:
    namespace = {**vars(builtins), **vars(wsdeco), **vars(wsdeco.testing), **function.__globals__}
    found = namespace.get(name)
    known = isinstance(found, type) and issubclass(found, BaseException)
    return known or name in ("HTTPException", "CancelledError")


def raised_by(function: Callable[..., Any]) -> set[str]:
    """Return the classes that the body of a function raises by name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {node.func.id for node in raised if isinstance(node.func, ast.Name) and node.func.id[0].isupper()}


def test_attributes_are_those_of_the_class(public: Documented) -> None:
    listed = public.section("Attributes")
    cls = public.target
    if not isinstance(cls, type):
        assert listed is None
        return
    for name in listed or []:
        own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "wsdeco"]
        known = hasattr(cls, name) or any(name in inspect.get_annotations(base) for base in own)
        is_set = any(f"self.{name}" in inspect.getsource(base) for base in own)
        assert known or is_set, f"{public.name} has no attribute {name}"
    if dataclasses.is_dataclass(cls):
        assert [field.name for field in dataclasses.fields(cls)] == (listed or [])


def test_sections_come_in_order_and_have_names_that_tools_know(public: Documented) -> None:
    found = re.findall(r"^([A-Z]\w+):$", public.text, re.MULTILINE)
    order = ["Attributes", "Args", "Returns", "Yields", "Raises", "Warns"]
    assert set(found) <= set(SECTIONS)
    assert found == sorted(found, key=order.index)


# Annotations.


def test_it_is_annotated(public: Documented) -> None:
    function = public.function
    if function is None:
        return
    assert [each.name for each in public.parameters if each.annotation is each.empty] == []
    if not public.name.endswith("__init__"):
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(wsdeco.__file__).with_name("py.typed").is_file()
