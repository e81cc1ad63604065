"""What each module of the project imports, read from its syntax tree; nothing is executed."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
INSTALLED_AS = {"deltalens": "deltalens", "cli": "deltalens.cli", "figures": "deltalens.figures"}

Place = Literal["top", "function", "typing"]


@dataclass(frozen=True)
class Import:
    """One imported module, as far as the tree tells: `target` is a module or an outside package."""

    target: str
    names: tuple[str, ...]  # the attributes taken from it; empty for `import target`
    line: int
    place: Place  # run on import, run in a function, or for the type checker only


@dataclass(frozen=True)
class Module:
    name: str
    is_package: bool
    imports: list[Import] = field(default_factory=list)


def project_sources(root: Path = ROOT) -> dict[str, tuple[bool, str]]:
    """Module name -> (is a package, source) of everything that is installed."""
    sources = {}
    for folder, package in INSTALLED_AS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join((package, *(parts[:-1] if is_package else parts)))
            sources[name] = (is_package, path.read_text(encoding="utf-8"))
    return sources


def parse(sources: Mapping[str, tuple[bool, str]]) -> dict[str, Module]:
    """Module name -> the module and its imports, resolved against the names in `sources`."""
    return {
        name: Module(name, is_package, list(_imports(name, is_package, source, sources)))
        for name, (is_package, source) in sources.items()
    }


def _imports(
    module: str, is_package: bool, source: str, known: Mapping[str, object]
) -> Iterator[Import]:
    for node, place in _placed(ast.parse(source), "top"):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), node.lineno, place)
        elif isinstance(node, ast.ImportFrom):
            origin = absolute(module, is_package, node)
            modules = [a.name for a in node.names if f"{origin}.{a.name}" in known]
            names = tuple(a.name for a in node.names if a.name not in modules)
            for name in modules:
                yield Import(f"{origin}.{name}", (), node.lineno, place)
            if names:
                yield Import(origin, names, node.lineno, place)
        elif isinstance(node, ast.Call) and (target := _dynamic_target(node)):
            yield Import(target, (), node.lineno, place)


def _placed(node: ast.AST, place: Place) -> Iterator[tuple[ast.AST, Place]]:
    """Every node below, with the place it stands in. The `else` of a typing block is run."""
    for child in ast.iter_child_nodes(node):
        here = place
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            here = "typing" if place == "typing" else "function"
        elif isinstance(node, ast.If) and _is_type_checking(node.test) and child in node.body:
            here = "typing"
        yield child, here
        yield from _placed(child, here)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def absolute(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def _dynamic_target(call: ast.Call) -> str | None:
    """The module in `importlib.import_module("name")` or `__import__("name")`."""
    function = ast.unparse(call.func).rpartition(".")[2]
    if function in ("import_module", "__import__") and call.args:
        argument = call.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            return argument.value
    return None


def parents(module: str) -> list[str]:
    """The packages that Python runs before `module`: `a.b.c` -> `a`, `a.b`."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def running(module: Module) -> list[Import]:
    """The imports that loading and using a module runs. A package's functions are lazy loaders:
    what they import runs only for whoever asks, and is left out.
    """
    places = ("top",) if module.is_package else ("top", "function")
    return [item for item in module.imports if item.place in places]


def reached(modules: Mapping[str, Module], *starts: str) -> set[str]:
    """Every module of the project that loading and using `starts` loads, parents included."""
    seen: set[str] = set()
    queue = list(starts)
    while queue:
        name = queue.pop()
        if name in modules and name not in seen:
            seen.add(name)
            queue += parents(name)
            queue += [item.target for item in running(modules[name])]
    return seen


def cycles(modules: Mapping[str, Module]) -> list[list[str]]:
    """The groups of modules that import one another, in functions too; type-only imports aside."""
    edges = {
        name: {item.target for item in running(module) if item.target in modules}
        for name, module in modules.items()
    }
    below = {name: _closure(edges, name) for name in edges}
    groups = {
        tuple(sorted(other for other in below[name] if name in below[other]))
        for name in edges
        if name in below[name]
    }
    return [list(group) for group in sorted(groups)]


def _closure(edges: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    queue = [start]
    while queue:
        for target in edges[queue.pop()] - seen:
            seen.add(target)
            queue.append(target)
    return seen
