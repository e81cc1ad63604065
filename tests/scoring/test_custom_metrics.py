"""Metrics that deltalens does not know: a caller's plain number, and an installed package's."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import deltalens
from deltalens.errors import DeltaLensError, RecordError
from tests.support.checkpoint_pairs import Pair, PairOf
from tests.support.packages import install
from tests.support.runs import FEW, succeeds, write_rows
from tests.support.studies import drop_study

ROWS = [{"prompt": f"{a}+{b}>", "completion": f"={a + b}"} for a, b in ((1, 2), (3, 4), (5, 1))]
CODE = """
class Sum:
    better = "higher"
    label = "sum of weights"

    @staticmethod
    def measure(model, tokenizer):
        assert tokenizer is not None
        return float(sum(p.double().sum() for p in model.parameters()))

class Several:
    @staticmethod
    def measure(model, tokenizer):
        return {"first": 1.0, "second": 2}

class Broken:
    better = "upwards"
    measure = None
"""
POINTS = {"weight-sum": "extra:Sum", "several": "extra:Several", "broken": "extra:Broken"}
SMALL: dict[str, Any] = {"rates": "0.5", "strategies": ["trivial"], "fidelity": FEW}


@pytest.fixture(scope="module")
def pair(pair_of: PairOf) -> Pair:
    return pair_of(family="llama")


def score(model: nn.Module) -> float:
    """A plain number."""
    return float(next(model.parameters()).double().sum())


def installed(folder: Path, patch: pytest.MonkeyPatch, version: str = "1.0") -> None:
    install(folder, patch, group="deltalens.metrics", points=POINTS, code=CODE, version=version)


def test_a_plain_number_is_called_as_its_function_is(pair: Pair, tmp_path: Path) -> None:
    better = {"score": "higher"}
    record = drop_study(pair.ft, pair.base, tmp_path / "s", metric=score, better=better, **SMALL)
    assert {*record.cells["metric"]} == {"score"}
    assert record.facts["better"] == better
    unnamed = drop_study(pair.ft, pair.base, tmp_path / "t", metric=lambda model: 0.5, **SMALL)
    assert {*unnamed.cells["metric"]} == {"metric"}


def test_an_installed_metric_is_measured_beside_ours(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "site", monkeypatch)
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    out = tmp_path / "s"
    succeeds(
        *("drop-study", pair.ft, pair.base, "-o", out, "--rates", "0.5"),
        *("--strategies", "trivial", "--data", rows, "--metrics", "loss,weight-sum,several"),
    )
    record = deltalens.load_study(out)
    names = [*dict.fromkeys(record.cells["metric"])]
    assert names == ["loss", "weight-sum", "several/first", "several/second"]
    sums = record.cells[record.cells["metric"] == "weight-sum"].set_index("rate")["value"]
    assert sums[0.0] != sums[1.0]
    assert record.facts["better"] == {"weight-sum": "higher"}
    assert record.spec["installed"] == {"weight-sum": "extra 1.0", "several": "extra 1.0"}


def test_an_installed_metric_of_a_landscape_is_of_no_data(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "site", monkeypatch)
    record = deltalens.scan_landscape(
        pair.ft, tmp_path / "s", plane="random", grid=2, metrics=["weight-sum", "several"]
    )
    assert {*zip(record.cells["data"], record.cells["metric"], strict=True)} == {
        ("-", "weight-sum"),
        ("several", "first"),
        ("several", "second"),
    }


def test_another_version_of_its_package_is_another_study(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "site", monkeypatch)
    spec: dict[str, Any] = {**SMALL, "metrics": ["weight-sum"]}
    drop_study(pair.ft, pair.base, tmp_path / "s", **spec)
    installed(tmp_path / "site", monkeypatch, "1.1")
    with pytest.raises(RecordError, match=r"installed.*extra 1\.0.*extra 1\.1"):
        drop_study(pair.ft, pair.base, tmp_path / "s", **spec)


def test_a_metric_that_is_not_there_or_broken_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a checkpoint is opened: there is none here, and nobody says so."""
    installed(tmp_path / "site", monkeypatch)
    nowhere = tmp_path / "ft", tmp_path / "base"
    for name, said in (
        ("broken", r"'broken' of extra 1\.0: has no method measure"),
        ("bleu", "weight-sum"),
    ):
        with pytest.raises(DeltaLensError, match=said):
            drop_study(*nowhere, tmp_path / "s", metrics=[name])
    assert not (tmp_path / "s").exists()
