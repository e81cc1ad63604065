"""Tiny models are configured and built in one place, `tests/support/models.py`."""

import ast

import pytest

from tests.architecture.import_graph import ROOT
from tests.support.models import ARCHITECTURES

FACTORY = ROOT / "tests" / "support" / "models.py"
CLASSES = {
    built.__name__ for config, model, _ in ARCHITECTURES.values() for built in (config, model)
}


def built_in(source: str) -> list[str]:
    """The calls in a source of a configuration or a model that the factory builds."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        f"{call.lineno}: {ast.unparse(call.func)}"
        for call in calls
        if ast.unparse(call.func).rpartition(".")[2] in CLASSES
    ]


def test_no_other_module_builds_one() -> None:
    elsewhere = [
        f"{path.relative_to(ROOT)}:{call}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if path != FACTORY
        for call in built_in(path.read_text(encoding="utf-8"))
    ]
    assert elsewhere == []


@pytest.mark.parametrize(
    "source",
    [
        "from transformers import LlamaConfig\nLlamaConfig(hidden_size=8)",
        "import transformers\nmodel = transformers.GPT2LMHeadModel(config)",
    ],
)
def test_a_planted_model_is_found(source: str) -> None:
    assert len(built_in(source)) == 1


def test_loading_one_or_naming_its_type_is_no_building() -> None:
    source = "def load(p) -> LlamaForCausalLM:\n    return LlamaForCausalLM.from_pretrained(p)"
    assert built_in(source) == []
