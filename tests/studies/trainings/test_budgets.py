"""Sweeps over the share of a model that is trained, and over how masks are chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from deltalens.errors import RecordError
from deltalens.figures import draw
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.records import StudyRecord
from deltalens.reports.trainings import summarize_sweep
from deltalens.studies.budgets import sweep_density, sweep_masks
from deltalens.studies.training_plans import TrainingData
from deltalens.training.budget import low_rank_size
from deltalens.training.methods import method_of
from deltalens.training.run import train
from tests.support.fake_training import FakeTraining, fake_trainings
from tests.support.runs import command
from tests.support.specs import run_study, training_spec
from tests.support.training_folders import write_rows

SHORT: dict[str, Any] = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2}


@pytest.fixture
def source(base: Path, rows: Path) -> TrainingData:
    return TrainingData(model=base, data=rows, eval_data=[rows])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    return fake_trainings(monkeypatch)


def files(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "cells.csv").read_bytes(), (folder / "study.json").read_bytes()


def losses(record: StudyRecord, *columns: str) -> dict[Any, float]:
    cells = record.cells[record.cells["metric"] == "loss"]
    keys = zip(*(cells[column] for column in columns), strict=True)
    return dict(zip(keys, cells["value"], strict=True))


@pytest.mark.oracle
@pytest.mark.parametrize("targets", ["attention", "linear", "q_proj,up_proj"])
def test_a_budget_is_what_peft_counts_on_the_loaded_model(base: Path, targets: str) -> None:
    size = low_rank_size(open_checkpoint(base), targets)
    model = AutoModelForCausalLM.from_pretrained(base)
    assert size.parameters == model.num_parameters()
    adapter = method_of("lora", lora_rank=3, targets=targets).prepare(model, 0, None)  # type: ignore[arg-type]
    trained, everything = adapter.model.get_nb_trainable_parameters()  # type: ignore[operator]
    assert size.trained(3) == trained
    assert everything == size.parameters + trained


def test_every_method_trains_as_many_parameters_as_the_lora_of_that_rank(
    source: TrainingData, base: Path, rows: Path, tmp_path: Path
) -> None:
    methods, axes = "sft,lora,speft:examples=8", {"ranks": [1, 2], "seeds": 1}
    record = run_study(sweep_density, methods, source, tmp_path / "s", SHORT, **axes)
    assert [*record.cells.columns[:5]] == ["method", "rank", "trained", "trained_share", "seed"]
    size = low_rank_size(open_checkpoint(base), "attention")
    cells = record.cells[record.cells["metric"] == "loss"]
    counted = {
        (m, r): t for m, r, t in zip(cells["method"], cells["rank"], cells["trained"], strict=True)
    }
    assert counted == {
        ("ft", 0): 0,
        ("sft", 0): size.parameters,
        **{(method, rank): rank * size.per_rank for method in ("lora", "speft") for rank in (1, 2)},
    }
    assert (cells["trained_share"] == cells["trained"] / size.parameters).all()
    own = training_spec("speft", like_lora=2, targets="attention", examples=8, **SHORT)
    alone = train(base, rows, tmp_path / "alone", own, eval_data=[rows])
    assert losses(record, "method", "rank")["speft", 2] == alone.metrics["loss"].value
    lora = training_spec("lora", lora_rank=1, targets="attention", **SHORT)
    low_rank = train(base, rows, tmp_path / "lora", lora, eval_data=[rows])
    assert losses(record, "method", "rank")["lora", 1] == low_rank.metrics["loss"].value
    facts = json.loads((tmp_path / "alone" / "train.json").read_text())["facts"]
    assert facts["trained"] == counted["speft", 2]
    assert draw(tmp_path / "s")
    again = run_study(sweep_density, methods, source, tmp_path / "s", SHORT, **axes)
    assert len(again.cells) == len(record.cells)


@pytest.mark.parametrize("turned", [False, True])
def test_a_sweep_over_budgets_that_grew_equals_one_call(
    source: TrainingData, fake: FakeTraining, tmp_path: Path, turned: bool
) -> None:
    parts: list[tuple[str, dict[str, Any]]] = [
        ("speft:metric=snip,speft:metric=random", {"ranks": [4], "seeds": 1}),
        ("lora,pissa,sft", {"ranks": [1, 2], "seeds": 2}),
    ]
    union = ",".join(methods for methods, _ in parts)
    run_study(sweep_density, union, source, tmp_path / "whole", ranks=[2, 1, 4], seeds=2)
    calls = fake.calls
    for methods, axes in reversed(parts) if turned else parts:
        run_study(sweep_density, methods, source, tmp_path / "s", **axes)
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert fake.calls == 2 * calls


def test_its_summary_says_whether_the_lead_over_lora_widens(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    record = run_study(sweep_density, "lora,speft", source, tmp_path / "s", ranks=[1, 2], seeds=2)
    found = losses(record, "method", "rank", "seed")
    lead = {
        rank: sum(found["lora", rank, seed] - found["speft", rank, seed] for seed in (0, 1)) / 2
        for rank in (1, 2)
    }
    summary = summarize_sweep(record)
    (said,) = [text for text in summary.sentences() if "leads lora" in text]
    assert f"{lead[1]:+.4f} at rank 1, {lead[2]:+.4f} at rank 2" in said
    widens = "widens" if lead[2] > lead[1] else "does not widen"
    assert f"the lead {widens} from rank 1 to 2 ({lead[2] - lead[1]:+.4f})" in said
    (table, *_) = summary.tables()
    assert table.columns == ("rank", "trained", "of the model", "ft", "lora", "speft")
    assert [row[0] for row in table.rows] == ["0", "1", "2"]
    assert table.rows[0][1:3] == ("-", "-")
    assert table.rows[1][2].endswith(" %")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["density", "gmt"], "method 'gmt': choose from ft, sft, lora, pissa, speft"),
        (["density", "lora:lora-rank=2"], "lora_rank is varied by this study; give --ranks"),
        (["density", "speft:density=0.1"], "density is varied by this study; give --ranks instead"),
        (["density", "lora:targets=linear"], "targets is varied by this study; give --targets"),
        (["density", "lora", "--ranks", "0,2"], "ranks '0,2': whole numbers above 0"),
        (["density", "lora", "--ranks", "4,999"], "more than the model"),
        (["density", "lora", "--targets", "q_prj"], "no such layers in Llama"),
        (["masks", "lora"], "method 'lora': choose from speft"),
        (["masks", "speft:metric=snip,speft"], "a sweep over masks has one"),
        (["masks", "speft:scope=layer"], "scope is varied by this study; give --scopes instead"),
        (["masks", "speft", "--scopes", "block"], "block"),
        (["masks", "speft", "--refresh-every", "0"], "whole numbers above 0"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_any_work(
    source: TrainingData, tmp_path: Path, words: list[str], message: str
) -> None:
    kind, method, *options = words
    rows = ["--train-data", source.data, "--eval-data", source.data, "-o", tmp_path / "s"]
    result = command("sweep", kind, method, source.model, *rows, *options)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "s").exists()


def test_other_targets_are_another_study(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    run_study(sweep_density, "lora", source, tmp_path / "s", ranks=[1], seeds=1)
    with pytest.raises(RecordError, match="targets: 'attention' in the folder, 'linear' now"):
        run_study(
            sweep_density, "lora", source, tmp_path / "s", ranks=[1], seeds=1, targets="linear"
        )


def test_static_and_dynamic_masks_of_every_scope(
    source: TrainingData, base: Path, rows: Path, tmp_path: Path
) -> None:
    axes: dict[str, Any] = {"scopes": ["tensor", "global"], "refresh_every": [2], "seeds": 1}
    method = "speft:density=0.1:examples=8"
    record = run_study(sweep_masks, method, source, tmp_path / "s", SHORT, **axes)
    found = losses(record, "scope", "refresh_every")
    assert [*found] == [("global", 0), ("global", 2), ("tensor", 0), ("tensor", 2)]
    assert len({*found.values()}) == 4
    own = {"density": "0.1", "examples": 8, "scope": "tensor", "refresh_every": 2}
    alone = train(
        base, rows, tmp_path / "alone", training_spec("speft", **own, **SHORT), eval_data=[rows]
    )
    assert found["tensor", 2] == alone.metrics["loss"].value
    assert draw(tmp_path / "s")


def test_a_sweep_over_masks_grows_and_compares_pairs_of_seeds(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    run_study(sweep_masks, "speft", source, tmp_path / "whole", refresh_every=[10, 20], seeds=2)
    for scopes, steps in ((["layer"], [20]), (["global", "tensor"], [10])):
        axes: dict[str, Any] = {"scopes": scopes, "refresh_every": steps, "seeds": 2}
        record = run_study(sweep_masks, "speft", source, tmp_path / "s", **axes)
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    found = losses(record, "scope", "refresh_every", "seed")
    pairs = [
        found[scope, 10, seed] - found[scope, 0, seed]
        for scope in ("global", "layer", "tensor")
        for seed in (0, 1)
    ]
    summary = summarize_sweep(record)
    text = "\n".join(summary.sentences())
    mean = sum(pairs) / len(pairs)
    assert f"masks renewed every 10 steps minus static ones: {mean:+.4f} ±" in text
    assert "over 6 pairs (lower is better)" in text
    assert "masks by tensor minus global ones: " in text
    (table,) = summary.tables()
    assert table.rows[0][0] == "speft:scope=global"
    assert len(table.rows) == 9
    assert draw(tmp_path / "s")


def test_both_take_a_grid_of_learning_rates(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    held = write_rows(tmp_path / "held.jsonl", [{"prompt": "1+1=", "completion": "2"}])
    given = {n: getattr(source, n) for n in ("model", "data", "eval_data")}
    apart = TrainingData(**given, choose_on=held)
    rates = (1e-3, 1e-4)
    densities = run_study(
        sweep_density, "lora,sft", apart, tmp_path / "d", ranks=[1], seeds=1, learning_rates=rates
    )
    columns = ["method", "rank", "trained", "trained_share", "learning_rate", "seed"]
    assert [*densities.cells.columns[:6]] == columns
    masks = run_study(sweep_masks, "speft", apart, tmp_path / "m", seeds=1, learning_rates=rates)
    for record in (densities, masks):
        summary = summarize_sweep(record)
        assert "worst minus best of 2 learning rates" in "\n".join(summary.sentences())
        assert summary.as_json()["learning_rates"]["loss"]
        assert draw(record.path)


@pytest.mark.parametrize("kind", ["density", "masks"])
def test_as_a_user_types_it(
    source: TrainingData, fake: FakeTraining, tmp_path: Path, kind: str
) -> None:
    rows = ["--train-data", source.data, "--eval-data", source.data, "--seeds", 1]
    own = ["--ranks", "1,2"] if kind == "density" else ["--refresh-every", "5"]
    words = ["sweep", kind, "speft", source.model, *rows, *own, "-o", tmp_path / "s"]
    planned = command(*words, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert not (tmp_path / "s").exists()
    done = command(*words, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metrics"]["loss"]
    assert command(*words).exit_code == 0
    assert command("plot", tmp_path / "s").exit_code == 0
