"""Which command can say which message: a graph over all top-level definitions, read from the syntax
trees. A definition leads to every other whose name it mentions; nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.architecture.import_graph import absolute, project_sources

Node = tuple[str, str]
"""Module, and the name of a top-level definition in it."""


@dataclass
class Definition:
    """A function, a class with its methods, or an assignment."""

    messages: list[tuple[int, str]] = field(default_factory=list)
    """Line and text of every string that is no docstring; of an f-string the constant parts."""
    mentions: set[tuple[str, str]] = field(default_factory=set)
    """Names that are not its own, each with the attribute asked of it, or with nothing."""
    imports: dict[str, Node] = field(default_factory=dict)


class Graph:
    """All definitions of the project."""

    def __init__(self) -> None:
        self.nodes: dict[Node, Definition] = {}
        self._imports: dict[str, dict[str, Node]] = {}
        sources = project_sources()
        self._modules = set(sources)
        for module, (is_package, source) in sources.items():
            tree = ast.parse(source)
            self._imports[module] = {}
            for statement in tree.body:
                if isinstance(statement, (ast.Import, ast.ImportFrom, ast.If)):
                    self._imports[module] |= dict(self._imported(module, is_package, statement))
            for statement in tree.body:
                for name in _names_of(statement):
                    made = self.nodes.setdefault((module, name), Definition())
                    self._read(made, module, is_package, statement)

    def _imported(self, module: str, is_package: bool, tree: ast.AST) -> Iterator[tuple[str, Node]]:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                origin = absolute(module, is_package, node)
                for alias in node.names:
                    yield alias.asname or alias.name, (origin, alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.asname or alias.name.split(".")[0], (alias.name, "")

    def _read(self, made: Definition, module: str, is_package: bool, tree: ast.stmt) -> None:
        documented = {id(text) for text in docstrings(tree)}
        inside = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        own = _own_names(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                made.mentions.add((node.value.id, node.attr))
            elif isinstance(node, ast.Name) and node.id not in own:
                made.mentions.add((node.id, ""))
            elif isinstance(node, ast.JoinedStr) and id(node) not in inside:
                parts = (
                    str(part.value) if isinstance(part, ast.Constant) else "X"
                    for part in node.values
                )
                made.messages.append((node.lineno, "".join(parts)))
            elif isinstance(node, ast.Constant) and id(node) not in documented | inside:
                made.messages.append((node.lineno, str(node.value)))
        made.imports |= dict(self._imported(module, is_package, tree))

    def reached(self, start: Node) -> set[Node]:
        """All definitions that a definition leads to, itself included."""
        seen: set[Node] = set()
        queue = [start]
        while queue:
            here = queue.pop()
            while here not in self.nodes and here[1] in self._imports.get(here[0], {}):
                here = self._imports[here[0]][here[1]]  # A package shows what a module of it has.
            if here in seen or here not in self.nodes:
                continue
            seen.add(here)
            queue += self._next(here)
        return seen

    def _next(self, here: Node) -> Iterator[Node]:
        module, made = here[0], self.nodes[here]
        for name, attribute in made.mentions:
            origin, wanted = (
                made.imports.get(name) or self._imports[module].get(name) or (module, name)
            )
            inside = f"{origin}.{wanted}" if wanted else origin
            yield (inside, attribute) if inside in self._modules else (origin, wanted)


def _names_of(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [
            name.id
            for target in statement.targets
            for name in ast.walk(target)
            if isinstance(name, ast.Name)
        ]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def _own_names(tree: ast.stmt) -> set[str]:
    """What a function or class binds itself: its arguments and variables, but not what it imports
    or defines."""
    if not isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return set()
    stored = (n for n in ast.walk(tree) if isinstance(n, ast.Name))
    bound = {n.id for n in stored if isinstance(n.ctx, ast.Store)}
    return bound | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                yield statement.value
