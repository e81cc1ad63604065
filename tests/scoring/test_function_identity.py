"""A function of the caller's is known by what decides its result, not by its name.

What decides is said by Python: of every pair of functions below the results are compared, too.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deltalens.scoring.code import identify, identify_module
from tests.support.models import tokenizer

Result = Any
FACTOR = 2.0


def helper(x: float) -> float:
    return FACTOR * x


def module_of(source: str, name: str = "typed_in") -> types.ModuleType:
    """A module that was never in a file, as what is typed in a notebook."""
    module = types.ModuleType(name)
    exec(source, vars(module))
    return module


def function_of(source: str) -> Any:
    return module_of(source).f


class Scaled:
    """A metric with something to remember."""

    def __init__(self, by: Any) -> None:
        self.by = by

    def metric(self, x: float) -> float:
        return float(self.by) * x

    def __call__(self, x: float) -> float:
        return float(self.by) * x + 1


class Slotted:
    __slots__ = ("by",)

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: float) -> float:
        return self.by * x


def capturing(value: Any) -> Callable[[float], float]:
    return lambda x: float(np.sum(np.asarray(value, dtype=float))) * x


def viewed(value: Any) -> Callable[[float], str]:
    return lambda x: f"{value.dtype} {value.shape}"


def of_dataclass(value: int) -> Callable[[float], float]:
    @dataclass
    class Held:
        k: int = value

    return lambda x: Held().k * x


def of_tensor(value: torch.Tensor) -> Callable[[float], float]:
    return lambda x: float(value) * x


def through(function: Callable[..., Any]) -> Callable[[float], float]:
    def inner(x: float) -> float:
        return float(function(x))

    return inner


def decorated(by: float) -> Callable[[float], float]:
    def decorate(function: Callable[[float], float]) -> Callable[[float], float]:
        @functools.wraps(function)
        def wrapped(x: float) -> float:
            return function(by * x)

        return wrapped

    @decorate
    def f(x: float) -> float:
        return x

    return f


def of_net(weight: float, bias: float = 0.0) -> Callable[[float], float]:
    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, weight)
    nn.init.constant_(net.bias, bias)
    return lambda x: float(net(torch.tensor([x])).detach())


def found_in(words: list[str]) -> Callable[[float], float]:
    vocabulary = set(words)
    return lambda x: x * ("a" in vocabulary)


def matched(pattern: str) -> Callable[[float], float]:
    compiled = re.compile(pattern)
    return lambda x: x * bool(compiled.match("abc"))


@torch.no_grad()  # type: ignore[untyped-decorator]
def without_gradient_1(x: float) -> float:
    return x + 1


@torch.no_grad()  # type: ignore[untyped-decorator]
def without_gradient_2(x: float) -> float:
    return x + 2


# One line, so that neither file nor line tells them apart.
ON_ONE_LINE = (lambda x: x + 1, lambda x: x + 2)

PAIRS: dict[str, tuple[Any, Any]] = {
    "constants": (function_of("f = lambda x: x + 1"), function_of("f = lambda x: x + 2")),
    "on one line": ON_ONE_LINE,
    "operators": (function_of("f = lambda x: x + 3"), function_of("f = lambda x: x * 3")),
    "called attribute": (
        function_of("import math\nf = lambda x: math.sin(x)"),
        function_of("import math\nf = lambda x: math.cos(x)"),
    ),
    "defaults": (
        function_of("def f(x, y=1): return x + y"),
        function_of("def f(x, y=2): return x + y"),
    ),
    "keyword defaults": (
        function_of("def f(x, *, y=1): return x + y"),
        function_of("def f(x, *, y=2): return x + y"),
    ),
    "true and one": (
        function_of("f = lambda x: str(True) + str(x)"),
        function_of("f = lambda x: str(1) + str(x)"),
    ),
    "float and int": (
        function_of("f = lambda x: str(1.0)"),
        function_of("f = lambda x: str(1)"),
    ),
    "nested function": (
        function_of("def f(x):\n def g(y): return y + 1\n return g(x)"),
        function_of("def f(x):\n def g(y): return y + 2\n return g(x)"),
    ),
    "global value": (
        function_of("k = 1\nf = lambda x: x + k"),
        function_of("k = 2\nf = lambda x: x + k"),
    ),
    "global of a nested function": (
        function_of("k = 1\ndef f(x):\n def g(y): return y + k\n return g(x)"),
        function_of("k = 2\ndef f(x):\n def g(y): return y + k\n return g(x)"),
    ),
    "helper's code": (
        function_of("def g(x): return x + 1\ndef f(x): return g(x)"),
        function_of("def g(x): return x + 2\ndef f(x): return g(x)"),
    ),
    "helper's helper": (
        function_of("k = 1\ndef h(x): return k\ndef g(x): return h(x)\ndef f(x): return g(x)"),
        function_of("k = 2\ndef h(x): return k\ndef g(x): return h(x)\ndef f(x): return g(x)"),
    ),
    "class that it makes": (
        function_of("class A:\n k = 1\n def g(self): return self.k\nf = lambda x: A().g() * x"),
        function_of("class A:\n k = 2\n def g(self): return self.k\nf = lambda x: A().g() * x"),
    ),
    "method of a class": (
        function_of("class A:\n def g(self): return 1\nf = lambda x: A().g() * x"),
        function_of("class A:\n def g(self): return 2\nf = lambda x: A().g() * x"),
    ),
    "property of a class": (
        function_of("class A:\n @property\n def g(self): return 1\nf = lambda x: A().g * x"),
        function_of("class A:\n @property\n def g(self): return 2\nf = lambda x: A().g * x"),
    ),
    "static method": (
        function_of("class A:\n @staticmethod\n def g(): return 1\nf = lambda x: A.g() * x"),
        function_of("class A:\n @staticmethod\n def g(): return 2\nf = lambda x: A.g() * x"),
    ),
    "inherited method": (
        function_of("class B:\n def g(self): return 1\nclass A(B): pass\nf = lambda x: A().g()"),
        function_of("class B:\n def g(self): return 2\nclass A(B): pass\nf = lambda x: A().g()"),
    ),
    "dataclass default": (of_dataclass(1), of_dataclass(2)),
    "enum": (
        function_of("import enum\nclass A(enum.Enum):\n k = 1\nf = lambda x: A.k.value * x"),
        function_of("import enum\nclass A(enum.Enum):\n k = 2\nf = lambda x: A.k.value * x"),
    ),
    "recursion": (
        function_of("def f(x): return 1 if x < 1 else f(x - 1) + 1"),
        function_of("def f(x): return 1 if x < 1 else f(x - 1) + 2"),
    ),
    "function attribute": (
        function_of("def f(x): return f.k * x\nf.k = 1"),
        function_of("def f(x): return f.k * x\nf.k = 2"),
    ),
    "captured number": (capturing(1.0), capturing(2.0)),
    "captured list": (capturing([1, 2]), capturing([1, 3])),
    "captured deep inside": (
        through(functools.partial(lambda y, x: y[0]["a"][0] * x, [{"a": (1,)}])),
        through(functools.partial(lambda y, x: y[0]["a"][0] * x, [{"a": (2,)}])),
    ),
    "captured array": (capturing(np.array([1.0, 2.0])), capturing(np.array([1.0, 2.5]))),
    "captured array's dtype": (
        viewed(np.array([300], np.int32)),
        viewed(np.array([300, 0], np.int16)[:1]),
    ),
    "captured array's shape": (viewed(np.ones((2, 1))), viewed(np.ones((1, 2)))),
    "captured tensor": (capturing(torch.tensor([1.0])), capturing(torch.tensor([1.5]))),
    "captured bf16 tensor": (
        of_tensor(torch.tensor([1.0], dtype=torch.bfloat16)),
        of_tensor(torch.tensor([2.0], dtype=torch.bfloat16)),
    ),
    "captured model": (of_net(1.0), of_net(1.0, 0.5)),
    "captured set": (found_in(["a", "b"]), found_in(["c", "b"])),
    "captured pattern": (matched("a"), matched("b")),
    "captured function": (through(ON_ONE_LINE[0]), through(ON_ONE_LINE[1])),
    "bound method": (Scaled(1.0).metric, Scaled(2.0).metric),
    "object that is called": (Scaled(1.0), Scaled(2.0)),
    "object with slots": (Slotted(1.0), Slotted(2.0)),
    "partial": (
        functools.partial(pow, 2),
        functools.partial(pow, 3),
    ),
    "partial's keyword": (
        functools.partial(function_of("def f(x, y): return x + y"), y=1),
        functools.partial(function_of("def f(x, y): return x + y"), y=2),
    ),
    "decorated": (decorated(1.0), decorated(2.0)),
    "decorated by torch": (without_gradient_1, without_gradient_2),
    "cached": (
        functools.lru_cache(function_of("f = lambda x: x + 1")),
        functools.lru_cache(function_of("f = lambda x: x + 2")),
    ),
    "method of a dictionary": ({2.0: 1.0}.get, {2.0: 3.0}.get),
    "vectorized": (np.vectorize(ON_ONE_LINE[0]), np.vectorize(ON_ONE_LINE[1])),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_functions_with_other_results_are_two(name: str) -> None:
    one, other = PAIRS[name]
    assert one(2.0) != other(2.0), "not a pair to test with"
    known = identify(one, None), identify(other, None)
    assert known[0].not_comparable is None
    assert known[0].spec != known[1].spec
    assert identify(one, None) == known[0], "calling it changed nothing"


AGAIN: dict[str, Callable[[], Any]] = {
    "lambda": lambda: function_of("f = lambda x: x + 1"),
    "helper": lambda: function_of("k = 1\ndef g(x): return x + k\ndef f(x): return g(x)"),
    "mutual recursion": lambda: function_of(
        "def g(x): return f(x - 1)\ndef f(x): return x if x < 1 else g(x)"
    ),
    "closure": lambda: capturing([1.0, {"a": torch.ones(2)}, np.ones(3), {"b", "c"}]),
    "bound method": lambda: Scaled(2).metric,
    "model": lambda: of_net(1.0),
    "decorated by torch": lambda: without_gradient_1,
    "tokenizer": lambda: functools.partial(lambda made, x: made(str(x)), fresh_tokenizer()),
    "set of texts": lambda: found_in(["a", "b", "c", "d"]),
    "logger": lambda: function_of(
        "import logging\nlog = logging.getLogger('n')\ndef f(x): log.info('seen'); return x"
    ),
    "class with a cache": lambda: function_of(
        "import functools\nclass A:\n @functools.cached_property\n def g(self): return 1\n"
        "f = lambda x: A().g"
    ),
}


def fresh_tokenizer() -> Any:
    tokenizer.cache_clear()
    return tokenizer()


@pytest.mark.parametrize("name", AGAIN)
def test_the_same_function_made_again_is_the_same(name: str) -> None:
    known = [identify(AGAIN[name](), None) for _ in range(2)]
    assert known[0] == known[1]
    assert known[0].not_comparable is None


def test_the_same_code_elsewhere_in_a_file_is_the_same() -> None:
    one, other = function_of("f = lambda x: x + 1"), function_of("\n\n\nf = lambda x: x + 1")
    assert one.__code__.co_firstlineno != other.__code__.co_firstlineno
    assert identify(one, None) == identify(other, None)


@pytest.mark.slow
def test_it_is_the_same_in_another_process() -> None:
    """Texts hash otherwise in each: sets have another order."""
    import subprocess

    script = (
        "from tests.scoring.test_function_identity import AGAIN, PAIRS\n"
        "from deltalens.scoring.code import identify\n"
        "made = [make() for make in AGAIN.values()] + [f for two in PAIRS.values() for f in two]\n"
        "print([identify(one, None).spec for one in made])"
    )
    root = Path(__file__).parents[2]
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(root)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_what_it_reads_from_a_module_in_a_file_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    users = {
        "import mine_{n}\nf = lambda x: mine_{n}.deep(x)": "attribute",
        "from mine_{n} import deep\nf = lambda x: deep(x)": "name",
        "def f(x):\n import mine_{n}\n return mine_{n}.deep(x)": "inside",
        "import mine_{n}\nf = lambda x: getattr(mine_{n}, 'deep')(x)": "module as a value",
    }
    for number, (source, how) in enumerate(users.items()):
        (tmp_path / f"mine_{number}.py").write_text(
            f"import below_{number}\ndef deep(x): return below_{number}.lower(x)\n"
        )
        known, results = [], []
        for value in (1, 20):
            (tmp_path / f"below_{number}.py").write_text(f"def lower(x): return {value}\n")
            for name in (f"mine_{number}", f"below_{number}"):
                sys.modules.pop(name, None)
            importlib.invalidate_caches()
            user = function_of(source.format(n=number))
            results.append(user(1.0))
            known.append(identify(user, None))
            again = identify(function_of(source.format(n=number)), None)
            assert again == known[-1], how
        assert results == [1, 20]
        assert known[0].not_comparable is None
        assert known[0] != known[1], how


def counted() -> Iterator[int]:
    yield 1


UNKNOWN: dict[str, tuple[Callable[[], Any], str]] = {
    "generator": (lambda: through(functools.partial(max, counted())), "captured 'function'"),
    "lock": (lambda: Scaled(threading.Lock()).metric, "the object it is a method of"),
    "global": (
        lambda: function_of(
            "import threading\nlock = threading.Lock()\ndef f(x):\n with lock: return x"
        ),
        "global 'lock'",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_compared_is_named_and_version_helps(name: str) -> None:
    make, part = UNKNOWN[name]
    known = identify(make(), None)
    assert known.not_comparable is not None
    assert part in known.not_comparable
    assert "version=" in known.not_comparable
    assert {"generator": "generator", "lock": "lock", "global": "lock"}[
        name
    ] in known.not_comparable
    said = identify(make(), "2")
    assert said.not_comparable is None
    assert said.spec == {"name": known.spec["name"] if known.spec else "", "version": "2"}
    assert identify(make(), 3).spec != said.spec


def test_a_version_stands_for_the_code() -> None:
    one, other = (function_of(f"f = lambda x: x + {n}") for n in (1, 2))
    assert identify(one, "1") == identify(other, "1")
    assert identify(one, "1") != identify(one, "2")


class Model(nn.Module):
    """With a buffer, and a number of its own."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("shift", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.weight * x + self.shift


def test_a_model_in_memory_is_all_that_its_forward_uses() -> None:
    plain = identify_module(Model())
    assert plain == identify_module(Model())
    assert plain.not_comparable is None
    others = [Model(2.0), Model(), Model(), Model().eval(), nn.Sequential(Model())]
    with torch.no_grad():
        others[1].weight[0] = 2.0  # type: ignore[index, operator]
        others[2].shift[1] = 1.0  # type: ignore[index, operator]

    class Model2(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -super().forward(x)

    others.append(Model2())
    known = [str(identify_module(one).spec) for one in others]
    assert len({str(plain.spec), *known}) == 1 + len(others)
