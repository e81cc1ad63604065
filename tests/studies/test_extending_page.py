"""docs/extending.md as its reader follows it: its blocks, put into a package, work."""

import importlib
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from deltalens import load_study
from tests.support.checkpoint_pairs import PairOf
from tests.support.runs import succeeds, table
from tests.support.training_folders import write_model, write_rows

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
REST = """
class Found:
    def __init__(self, record):
        self.record = record

    def tables(self):
        return []

    def sentences(self):
        yield f"luckiest: {self.record.cells['value'].max():g}"

    def as_json(self):
        return {}

def draw(folder):
    return []
"""
"""What the page names and does not show: a study's summary and picture."""


def blocks(language: str) -> list[str]:
    """The page's blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip would leave of the page's package."""
    metric, executor, method, study, command = blocks("python")
    folder, info = tmp_path / "site" / "mypackage", tmp_path / "site" / "mypackage-1.0.dist-info"
    folder.mkdir(parents=True)
    info.mkdir()
    (folder / "__init__.py").write_text(metric)
    (folder / "threads.py").write_text(executor)
    (folder / "largest.py").write_text(method)
    (folder / "coins.py").write_text(f"from pathlib import Path\n{study}\n{command}\n{REST}")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n")
    points = ""
    for block in blocks("toml"):
        ((group, named),) = tomllib.loads(block)["project"]["entry-points"].items()
        points += f"[{group}]\n" + "".join(f"{name} = {at}\n" for name, at in named.items())
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(folder.parent))
    for name in ("mypackage", *(f"mypackage.{name}" for name in ("threads", "largest", "coins"))):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("package")
def test_its_metric_and_its_executor_measure(pair_of: PairOf, tmp_path: Path) -> None:
    pair = pair_of(family="llama")
    few = ("--rates", "0.5", "--strategies", "trivial", "--fidelity-tokens", "8")
    spec = ("drop-study", pair.ft, pair.base, *few, "--metrics", "weight-sum", "-q")
    succeeds(*spec, "-o", tmp_path / "here")
    succeeds(*spec, "-o", tmp_path / "there", "--executor", "threads")
    record = load_study(tmp_path / "there")
    assert {*record.cells["metric"]} == {"weight-sum"}
    assert record.facts["better"] == {"weight-sum": "higher"}
    assert table(tmp_path / "here") == table(tmp_path / "there")


@pytest.mark.usefixtures("package")
def test_its_training_method_trains_with_a_setting_of_its_own(tmp_path: Path) -> None:
    base, rows = write_model(tmp_path / "base"), write_rows(tmp_path / "rows.jsonl")
    how = ("--train-data", rows, "--steps", 1, "--batch-size", 4, "--only", "mlp", "-q")
    succeeds("train", "largest-only", base, "-o", tmp_path / "out", *how)
    asked = json.loads((tmp_path / "out" / "train.json").read_text())["asked"]
    assert (asked["method"], asked["mask_ratio"], asked["only"]) == ("largest-only", "0.5", "mlp")


@pytest.mark.usefixtures("package")
def test_its_command_makes_its_study(tmp_path: Path) -> None:
    assert "luckiest: 0.5" in succeeds("coins", tmp_path / "s", "--sides", "2")
    assert load_study(tmp_path / "s").kind == "coins"
