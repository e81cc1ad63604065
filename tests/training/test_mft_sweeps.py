"""The sweeps around a finished model: over layers, mask ratio and data, and the comparison."""

from pathlib import Path

import pytest

from deltalens import load_study
from deltalens.errors import DeltaLensError
from deltalens.figures import draw
from deltalens.studies.mask_ratio import sweep_mask_ratio
from deltalens.studies.mft_sweeps import compare, groups_of, sweep_data_ratio, sweep_layers
from deltalens.studies.sweep_summary import summarise_sweep
from deltalens.studies.trainings import TrainingData
from deltalens.training.asked import TrainingAsked
from deltalens.training.run import train
from tests.training.folders import write_model, write_rows

ASKED = TrainingAsked(steps=2, batch_size=4, learning_rate=1e-3, score_learning_rate=1e-2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("source")
    rows = write_rows(folder / "rows.jsonl")
    return TrainingData(model=write_model(folder / "ft"), data=rows, eval_data=[rows])


def value(study: Path, metric: str = "loss", **setting: object) -> float:
    cells = load_study(study).cells
    found = cells[cells["metric"] == metric]
    for column, wanted in setting.items():
        found = found[found[column] == wanted]
    assert len(found) == 1
    return float(found["value"].iloc[0])


def test_layers(source: TrainingData, tmp_path: Path) -> None:
    study = tmp_path / "study"
    sweep_layers(["mft", "l1-mask"], source, study, ASKED, sizes=[1, 2], seeds=1)
    cells = load_study(study).cells
    points = set(zip(cells["method"], cells["size"], cells["group"], strict=True))
    groups = [(1, "0"), (1, "1"), (2, "0-1")]
    assert points == {("ft", 0, ""), *((m, *g) for m in ("mft", "l1-mask") for g in groups)}
    own = TrainingAsked(method="mft", blocks="1", steps=2, batch_size=4, learning_rate=1e-2)
    alone = train(source.model, source.data, tmp_path / "alone", own, eval_data=source.eval_data)
    assert value(study, method="mft", group="1", size=1) == alone.metrics["loss"].value
    summary = summarise_sweep(load_study(study))
    assert "mft: best" in " ".join(summary.sentences())
    assert {row[0] for row in summary.tables()[0].rows} == {"-", "0", "1", "0-1"}
    assert draw(study)


def test_mask_ratio_of_weights(source: TrainingData, tmp_path: Path) -> None:
    study = tmp_path / "study"
    sweep_mask_ratio(["mft", "sft"], source, study, ASKED, ratios="0.1,0.4", seeds=1)
    assert value(study, method="mft", mask_ratio=0.0) == value(study, method="ft", mask_ratio=0.0)
    assert len({value(study, method="mft", mask_ratio=ratio) for ratio in (0.0, 0.1, 0.4)}) == 3
    assert load_study(study).asked["methods"] == ["ft", "mft", "sft"]
    assert "within 5 % of sft" in " ".join(summarise_sweep(load_study(study)).sentences())
    assert draw(study)


def test_data_ratio(source: TrainingData, tmp_path: Path) -> None:
    asked = TrainingAsked(batch_size=4, learning_rate=1e-2)
    study = tmp_path / "study"
    sweep_data_ratio(["mft"], source, study, asked, ratios="0.1,0.5", seeds=1)
    own = TrainingAsked(method="mft", batch_size=4, learning_rate=1e-2)
    alone = train(
        source.model, source.data, tmp_path / "alone", own, eval_data=source.eval_data, limit=20
    )
    assert alone.steps == 5
    assert value(study, method="mft", data_ratio=0.5) == alone.metrics["loss"].value
    assert draw(study)
    with pytest.raises(DeltaLensError, match="data ratio 0"):
        sweep_data_ratio(["mft"], source, tmp_path / "other", asked, ratios="0,0.5")


def test_comparison(source: TrainingData, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    given = TrainingData(
        model=source.model, data=source.data, eval_data=source.eval_data, eval_every=1
    )
    methods = ["base", "mft", "sft", "random-mask-weights", "l1-mask"]
    study = tmp_path / "study"
    compare(methods, given, study, ASKED, base=base, seeds=2)
    cells = load_study(study).cells
    assert dict(cells[cells["metric"] == "loss"].groupby("method").size()) == {
        "base": 1,
        "ft": 1,
        "l1-mask": 1,
        "mft": 2,
        "random-mask-weights": 2,
        "sft": 2,
    }
    assert value(study, method="base") == value(study, method="ft"), "the same weights"
    assert value(study, "loss@1", method="sft", seed=0) != value(study, method="sft", seed=0)
    assert set(cells[cells["metric"] == "loss@1"]["method"]) == {"mft", "sft"}
    (table,) = summarise_sweep(load_study(study)).tables()
    assert table.columns == ("method", "exact_match", "loss")
    assert draw(study)
    with pytest.raises(DeltaLensError, match="go together"):
        compare(["base"], given, tmp_path / "other", ASKED)
    with pytest.raises(DeltaLensError, match="'gmt': choose from"):
        compare(["gmt"], given, tmp_path / "other", ASKED)


@pytest.mark.parametrize(
    ("blocks", "size", "groups"),
    [(4, 1, ["0", "1", "2", "3"]), (5, 2, ["0-1", "2-3", "4"]), (3, 3, ["0-2"])],
)
def test_groups(blocks: int, size: int, groups: list[str]) -> None:
    assert groups_of(blocks, size) == groups


@pytest.mark.parametrize("size", [0, 5, -1])
def test_groups_that_cannot_be(size: int) -> None:
    with pytest.raises(DeltaLensError, match=f"groups of {size}"):
        groups_of(4, size)
