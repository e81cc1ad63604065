"""Imports point one way: the table below, held over every syntax tree, functions included."""

import sys

import pytest

from tests.architecture.import_graph import (
    INSTALLED_AS,
    ROOT,
    Import,
    Module,
    cycles,
    parents,
    parse,
    project_sources,
    reached,
    running,
)

# A unit is the part after `deltalens.`; each may import itself and what stands in its row.
BELOW_PROBES = {"errors", "names", "numerics", "io", "gradients"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "names": {"errors"},
    "catalog": {"errors", "names"},
    "numerics": {"errors"},
    "io": {"errors", "catalog", "names"},
    "reports": {"errors", "catalog", "names"},
    "report_page": {"errors", "catalog", "names", "io", "reports"},
    "recipes": {"errors", "catalog", "names", "numerics", "io"},
    "scoring": {"errors", "catalog", "numerics", "io"},
    "gradients": {"errors", "names", "numerics"},
    "probes": BELOW_PROBES,
    "methods": BELOW_PROBES | {"catalog"},
    "integrations": BELOW_PROBES | {"probes", "methods"},
    "training": {
        "errors",
        "catalog",
        "names",
        "numerics",
        "io",
        "scoring",
        "methods",
        "integrations",
    },
    "studies": {
        "errors",
        "catalog",
        "names",
        "numerics",
        "io",
        "scoring",
        "methods",
        "training",
    },
    "demo": {"errors", "numerics", "io", "probes", "methods"},
}
ALLOWED["api"] = {*ALLOWED}
"""The front door: everything but the command line, which is made from it, and the figures."""
COMMAND_LINE = "deltalens.cli.main"
"""All that `python -m deltalens` may import."""
RECORDS = ("deltalens.io.records", "deltalens.io.papers", "deltalens.io.tables")
OF_IO = {*RECORDS, "deltalens.io.escaping", "deltalens.io.files"}
"""What figures and reports may have of io: of records the package's face, and nothing inside."""
TORCH = {"torch", "transformers", "accelerate", "peft", "trl", "lm_eval"}


def unit_of(module: str) -> str:
    """The unit a module belongs to; empty for the package's own front, `deltalens`."""
    return [*module.split("."), ""][1]


def violations(modules: dict[str, Module]) -> list[str]:
    """Every import that the table forbids, as `module:line imports target`."""
    units = {unit_of(name) for name in modules} - {"", "__main__", "cli", "figures", *ALLOWED}
    return [
        f"{module.name}:{item.line} imports {item.target}"
        for module in modules.values()
        for item in module.imports
        if item.target.split(".")[0] in INSTALLED_AS and not may_import(module.name, item)
    ] + [f"deltalens.{unit} has no row in the table of allowed imports" for unit in sorted(units)]


def may_import(module: str, item: Import) -> bool:
    here, there = unit_of(module), unit_of(item.target)
    if not item.target.startswith("deltalens"):
        return False  # a top-level `cli` or `figures` exists only in the checkout
    if not here:
        return there not in ("cli", "figures") and item.place != "top"
    if here == "__main__":
        return item.target == COMMAND_LINE
    if here in ("cli", there):
        return True
    if not there:
        return item.names == ("__version__",)
    if here in ("figures", "reports"):
        return there in ("errors", "catalog", "names") or item.target in OF_IO
    return there in ALLOWED.get(here, set())


def front_runs(modules: dict[str, Module]) -> list[str]:
    """What `import deltalens` imports beyond the standard library."""
    return [
        f"deltalens:{item.line} imports {item.target}"
        for item in running(modules["deltalens"])
        if item.target.split(".")[0] not in sys.stdlib_module_names
    ]


def torch_users(modules: dict[str, Module]) -> list[str]:
    """The imports of torch that loading records, a report or a figure would run, now or later."""
    light = ("catalog", "figures", "recipes", "report_page", "reports")
    readers = [name for name in modules if unit_of(name) in light]
    return [
        f"{name}:{item.line} imports {item.target}"
        for name in sorted(
            reached(
                modules,
                "deltalens.errors",
                "deltalens.names",
                *RECORDS,
                *readers,
            )
        )
        for item in running(modules[name])
        if item.target.split(".")[0] in TORCH
    ]


@pytest.fixture(scope="module")
def project() -> dict[str, Module]:
    return parse(project_sources())


def planted(**sources: str) -> dict[str, Module]:
    """A small project; `io__records="import torch"` is the module deltalens.io.records."""
    names = {name: name if name == "__main__" else name.replace("__", ".") for name in sources}
    named = {f"deltalens.{names[name]}": source for name, source in sources.items()}
    packages = {package for name in named for package in parents(name)}
    modules = packages | named.keys()
    return parse({name: (name in packages, named.get(name, "")) for name in modules})


def test_every_import_follows_the_table(project):
    assert violations(project) == []


def test_no_modules_import_one_another(project):
    assert cycles(project) == []


def test_importing_the_package_runs_the_standard_library_only(project):
    assert front_runs(project) == []


def test_records_reports_and_figures_reach_no_torch(project):
    assert set(RECORDS) <= set(project)
    assert torch_users(project) == []


def test_every_folder_of_modules_is_a_package(project):
    packages = {name for name, module in project.items() if module.is_package}
    assert [name for name in project if not set(parents(name)) <= packages] == []


def test_table_is_without_cycles():
    order = list(ALLOWED)
    assert all(order.index(lower) < order.index(unit) for unit in order for lower in ALLOWED[unit])


def test_whole_project_was_read(project):
    files = [path for folder in INSTALLED_AS for path in (ROOT / folder).rglob("*.py")]
    assert len(project) == len(files) > 0


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("numerics__bits", "import deltalens.io.checkpoint"),
        ("numerics__bits", "from deltalens.io import checkpoint"),
        ("numerics__bits", "from ..io import checkpoint"),
        ("numerics__bits", "def f():\n    from deltalens.io.checkpoint import open_checkpoint"),
        ("numerics__bits", "class A:\n    from deltalens.io.checkpoint import open_checkpoint"),
        ("numerics__bits", "import importlib\nimportlib.import_module('deltalens.io.checkpoint')"),
        (
            "numerics__bits",
            "try:\n    import deltalens.io.checkpoint\nexcept ImportError:\n    ...",
        ),
        ("numerics__bits", "if TYPE_CHECKING:\n    import deltalens.io.checkpoint"),
        ("numerics__bits", "from deltalens import load_study"),
        ("errors", "from deltalens.numerics import bits"),
        ("io__checkpoint", "from deltalens.numerics.bits import digits"),
        ("studies__drop", "import deltalens.figures.drop_fig2"),
        ("studies__drop", "import deltalens.cli"),
        ("studies__drop", "from deltalens import cli"),
        ("studies__drop", "import figures.drop_fig2"),
        ("studies__drop", "from deltalens.api import studies"),
        ("api__studies", "from deltalens.figures import drop_fig2"),
        ("api__studies", "def f():\n    from deltalens.cli import main"),
        ("__main__", "from deltalens.studies import study"),
        ("__main__", "import deltalens.cli"),
        ("scoring__loss", "from deltalens.studies import study"),
        ("figures__drop_fig2", "from deltalens.io.checkpoint import open_checkpoint"),
        ("figures__drop_fig2", "from deltalens.numerics import bits"),
        ("figures__drop_fig2", "from deltalens.io.records.study_record import load_study"),
        ("reports__drop", "from deltalens.io.records.kinds import kind_of"),
        ("reports__drop", "from deltalens.studies import study"),
        ("novelty__thing", ""),
    ],
)
def test_planted_violation_is_found(module, source):
    bystanders = dict.fromkeys(
        (
            *("io__checkpoint", "numerics__bits", "studies__study", "figures__drop_fig2"),
            *("api__studies", "cli__main"),
        ),
        "",
    )
    assert len(violations(planted(**{**bystanders, module: source}))) == 1


def test_allowed_imports_are_not_reported():
    modules = planted(
        errors="",
        io__records="from deltalens import __version__\nfrom .tables import read_table",
        io__tables="import pandas\nfrom deltalens.errors import DeltaLensError",
        figures__drop_fig2="from deltalens.io import records, tables\nimport matplotlib",
        cli__main="def f():\n    from deltalens.figures import drop_fig2",
        cli__commands="from deltalens.api import deltas",
        api__deltas="from deltalens.studies import study",
        studies__study="",
        __main__="import importlib\nimportlib.import_module('deltalens.cli.main').main()",
    )
    assert violations(modules) == []
    assert torch_users(modules) == []
    assert cycles(modules) == []


@pytest.mark.parametrize(
    "sources",
    [
        {"io__records": "import torch"},
        {"io__records": "def f():\n    from torch import nn"},
        {"io__records": "from deltalens.io import tables", "io__tables": "import transformers"},
        {"figures__drop_fig2": "import torch"},
        {"reports__drop": "def f():\n    import torch"},
        {"figures__drop_fig2": "import deltalens.io.records", "io__records": "import torch"},
    ],
)
def test_planted_torch_is_found(sources):
    assert len(torch_users(planted(**{"io__records": "", **sources}))) == 1


def test_torch_is_free_in_what_records_do_not_load():
    modules = planted(io__records="", io__checkpoint="import torch", numerics__bits="import torch")
    assert torch_users(modules) == []


def test_planted_torch_in_a_parent_package_is_found():
    modules = planted(
        io="from deltalens.io import checkpoint", io__checkpoint="import torch", io__records=""
    )
    assert torch_users(modules) == ["deltalens.io.checkpoint:1 imports torch"]


@pytest.mark.parametrize(
    "source",
    [
        "from deltalens.io import checkpoint",
        "def f():\n    import deltalens.io.checkpoint",
        "from .helper import name",
    ],
)
def test_planted_cycle_is_found(source):
    modules = planted(
        io__pairing=source,
        io__helper="from deltalens.io import checkpoint",
        io__checkpoint="from deltalens.io.pairing import pair",
    )
    assert len(cycles(modules)) == 1


def test_planted_eager_front_is_found():
    modules = parse({"deltalens": (True, "import os\nimport torch\nfrom . import errors")})
    assert len(front_runs(modules)) == 2
