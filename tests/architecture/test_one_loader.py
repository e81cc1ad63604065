"""What could run a file's code is called in one place, or nowhere: held over the syntax trees."""

import ast
import textwrap

import pytest

from tests.architecture.import_graph import project_sources

LOADERS = {"from_pretrained", "from_config", "load_dataset", "load_from_disk", "hf_hub_download"}
LOADS_THROUGH = {
    "deltalens.io.pretrained": {"from_pretrained", "from_config"},
    # Rows only: datasets runs no code of a data set since 4.0, which the extra [train] needs.
    "deltalens.recipes.rows": {"load_dataset"},
}
"""Who calls what: nobody else, and nothing else."""
MODULES = {"pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "input", "__import__"}
UNSAFE = {
    "torch": {"load", "hub"},
    "numpy": set(),
    "yaml": {
        "load",
        "load_all",
        "full_load",
        "unsafe_load",
        "FullLoader",
        "UnsafeLoader",
        "Loader",
    },
    "os": {"system", "popen"},
    "pandas": {"read_pickle", "eval"},
}


def found(name: str, source: str) -> list[str]:
    """What a module calls, or hands on, that it may not: as `line: what`."""
    tree = ast.parse(source)
    allowed = LOADS_THROUGH.get(name, set())
    called = _aliases(tree)
    return sorted(
        f"{node.lineno}: {what}"  # type: ignore[attr-defined]
        for node in ast.walk(tree)
        for what in _faults(node, called)
        if what not in allowed
    )


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Names of the module -> the modules of others that they stand for."""
    return {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }


def _faults(node: ast.AST, called: dict[str, str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
    if isinstance(node, ast.ImportFrom):
        home = (node.module or "").split(".")[0]
        names = {alias.name for alias in node.names}
        own = [node.module or ""] if home in MODULES else []
        return own + sorted(names & (LOADERS | UNSAFE.get(home, set())))
    if isinstance(node, ast.Attribute):
        home = called.get(ast.unparse(node.value), "").split(".")[0]
        return [node.attr] if node.attr in LOADERS | UNSAFE.get(home, set()) else []
    if isinstance(node, ast.Constant):
        # As `getattr` and `import_module` would take it.
        return (
            [node.value] if isinstance(node.value, str) and node.value in LOADERS | MODULES else []
        )
    if isinstance(node, ast.Name):
        return [node.id] if node.id in BUILTINS and isinstance(node.ctx, ast.Load) else []
    if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
        off = isinstance(node.value, ast.Constant) and node.value.value is False
        return [] if off else [str(node.arg)]
    if isinstance(node, ast.keyword) and node.arg == "weights_only":
        on = isinstance(node.value, ast.Constant) and node.value.value is True
        return [] if on else ["weights_only"]
    return []


def test_every_load_goes_through_one_module():
    faults = {name: found(name, source) for name, (_, source) in project_sources().items()}
    assert {name: what for name, what in faults.items() if what} == {}


def test_that_module_says_each_time_what_is_safe():
    """Hub, pickles and code: each call in it passes all, or is of the kind that loads no file."""
    _, source = project_sources()["deltalens.io.pretrained"]
    calls = [
        (ast.unparse(node.func), {word.arg for word in node.keywords})
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
    ]
    safe = {"local_files_only", "trust_remote_code"}
    assert [words >= safe for called, words in calls if called == "load"] == [True]
    models = [w for called, w in calls if "dtype" in w]
    assert [w >= {"use_safetensors"} for w in models] == [True]
    adapters = [w for called, w in calls if called == "PeftModel.from_pretrained"]
    assert [w >= {"use_safetensors", "local_files_only"} for w in adapters] == [True]
    empty = [w for called, w in calls if called.endswith("from_config")]
    assert [w >= {"trust_remote_code"} for w in empty] == [True]


@pytest.mark.parametrize(
    "source",
    [
        "AutoModel.from_pretrained(folder, trust_remote_code=False)",
        "load = LlamaForCausalLM.from_pretrained\nload(folder)",
        "getattr(loader, 'from_pretrained')(folder)",
        "AutoModelForCausalLM.from_config(config)",
        "from datasets import load_dataset",
        "from datasets import load_dataset as rows",
        "import datasets as d\nd.load_dataset('x')",
        "import torch as t\nt.load(file)",
        "import torch\ndef f():\n    return torch.load(file, weights_only=True)",
        "from torch import load as read",
        "import torch\ntorch.hub.load('x')",
        "import pickle as p",
        "def f():\n    from pickle import loads",
        "import importlib\nimportlib.import_module('pickle')",
        "import joblib",
        "import yaml\nyaml.load(text, Loader)",
        "from yaml import unsafe_load",
        "import numpy as np\nnp.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=wanted)",
        "import subprocess\nsubprocess.run(line, shell=True)",
        "import os\nos.system(line)",
        "eval(text)",
        "run = exec",
        "input('sure? ')",
        "loader(file, weights_only=False)",
    ],
)
def test_planted_call_is_found(source):
    assert found("deltalens.studies.planted", textwrap.dedent(source))


def test_what_is_harmless_is_not_reported():
    source = """
        import re, yaml, numpy as np, json
        model.eval()
        re.compile("x")
        yaml.safe_load(text)
        np.load(file, allow_pickle=False)
        json.load(file)
        "a sentence with from_pretrained in it"
    """
    assert found("deltalens.studies.planted", textwrap.dedent(source)) == []
