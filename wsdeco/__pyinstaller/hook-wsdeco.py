"""Read by PyInstaller for every program with wsdeco: what compiled modules import, no analyser sees."""

import ast
from importlib.util import find_spec
from pathlib import Path


def imports_of(source: Path) -> set[str]:
    """Return the names of the modules that a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            package = find_spec(node.module)
            if package is not None and package.submodule_search_locations is not None:
                names = {f"{node.module}.{each.name}" for each in node.names}
                found |= {name for name in names if find_spec(name) is not None}
    return found


def hidden_imports(package: Path) -> list[str]:
    """Return what the compiled modules of a package import, and what holds their code; nothing if there are none."""
    compiled = [path for ending in ("so", "pyd") for path in package.rglob(f"*.{ending}")]
    sources = [path.with_name(path.name.partition(".")[0] + ".py") for path in compiled]
    modules = {name for source in sources if source.exists() for name in imports_of(source)}
    return sorted(modules | {f"wsdeco.{path.name.partition('.')[0]}" for path in compiled if path.parent == package})


hiddenimports = hidden_imports(Path(__file__).parent.parent)
