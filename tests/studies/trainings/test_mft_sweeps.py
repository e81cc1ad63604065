"""The sweeps around a finished model: over layers, mask ratio and data, and the comparison."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltalens import load_study
from deltalens.errors import DeltaLensError
from deltalens.figures import draw
from deltalens.reports.trainings import summarize_sweep
from deltalens.studies.mask_ratio import sweep_mask_ratio
from deltalens.studies.mft_sweeps import (
    compare,
    sweep_data_ratio,
    sweep_layers,
    with_complements,
)
from deltalens.studies.training_plans import TrainingData
from deltalens.training.run import train
from tests.support.specs import run_study, study_spec, training_spec
from tests.support.training_folders import write_model, write_rows

PLAIN: dict[str, Any] = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}
SCORED: dict[str, Any] = {**PLAIN, "score_learning_rate": 1e-2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("source")
    rows = write_rows(folder / "rows.jsonl")
    return TrainingData(model=write_model(folder / "ft"), data=rows, eval_data=[rows])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def value(study: Path, metric: str = "loss", **setting: object) -> float:
    cells = load_study(study).cells
    found = cells[cells["metric"] == metric]
    for column, wanted in setting.items():
        found = found[found[column] == wanted]
    assert len(found) == 1
    return float(found["value"].iloc[0])


def test_layers(source: TrainingData, tmp_path: Path) -> None:
    study = tmp_path / "study"
    methods = ["mft", "l1-mask"]
    run_study(sweep_layers, methods, source, study, SCORED, group_sizes=[1, 2], seeds=1)
    cells = load_study(study).cells
    points = set(zip(cells["method"], cells["size"], cells["group"], strict=True))
    groups = [(1, "0"), (1, "1"), (2, "0-1")]
    assert points == {("ft", 0, ""), *((m, *g) for m in methods for g in groups)}
    own = training_spec("mft", blocks="1", steps=2, batch_size=4, learning_rate=1e-2)
    alone = train(source.model, source.data, tmp_path / "alone", own, eval_data=source.eval_data)
    assert value(study, method="mft", group="1", size=1) == alone.metrics["loss"].value
    summary = summarize_sweep(load_study(study))
    assert "mft: best" in " ".join(summary.sentences())
    assert {row[0] for row in summary.tables()[0].rows} == {"-", "0", "1", "0-1"}
    assert draw(study)


def test_mask_ratio_of_weights(source: TrainingData, tmp_path: Path) -> None:
    study = tmp_path / "study"
    axes = {"mask_ratios": "0.1,0.4", "seeds": 1}
    run_study(sweep_mask_ratio, ["mft", "sft"], source, study, SCORED, **axes)
    assert value(study, method="mft", mask_ratio=0.0) == value(study, method="ft", mask_ratio=0.0)
    assert len({value(study, method="mft", mask_ratio=ratio) for ratio in (0.0, 0.1, 0.4)}) == 3
    assert load_study(study).spec["methods"] == ["ft", "mft", "sft"]
    assert "within 5 % of sft" in " ".join(summarize_sweep(load_study(study)).sentences())
    assert draw(study)


def test_data_ratio(source: TrainingData, tmp_path: Path) -> None:
    shared = {"batch_size": 4, "learning_rate": 1e-2}
    study = tmp_path / "study"
    run_study(sweep_data_ratio, "mft", source, study, shared, data_ratios="0.1,0.5", seeds=1)
    own = training_spec("mft", **shared)
    alone = train(
        source.model, source.data, tmp_path / "alone", own, eval_data=source.eval_data, limit=20
    )
    assert alone.steps == 5
    assert value(study, method="mft", data_ratio=0.5) == alone.metrics["loss"].value
    assert draw(study)
    other = tmp_path / "other"
    with pytest.raises(DeltaLensError, match="data ratio 0"):
        run_study(sweep_data_ratio, "mft", source, other, shared, data_ratios="0,0.5")


def test_comparison(source: TrainingData, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    given = TrainingData(
        model=source.model, data=source.data, eval_data=source.eval_data, eval_every=1
    )
    methods = ["base", "mft", "sft", "random-mask-weights", "l1-mask"]
    study = tmp_path / "study"
    run_study(compare, methods, given, study, SCORED, base=base, seeds=2)
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
    (table,) = summarize_sweep(load_study(study)).tables()
    assert table.columns == ("method", "from", "exact_match", "loss")
    assert draw(study)
    with pytest.raises(DeltaLensError, match="base needs the checkpoint of the base: give `base`"):
        run_study(compare, "base", given, tmp_path / "other", PLAIN)
    with pytest.raises(DeltaLensError, match="'one-off-drop': choose from"):
        run_study(compare, "one-off-drop", given, tmp_path / "other", PLAIN)


@pytest.fixture(scope="module")
def loras(source: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of all LoRAs, with a base whose weights are not the fine-tune's."""
    folder = tmp_path_factory.mktemp("loras")
    model = AutoModelForCausalLM.from_pretrained(source.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(source.model).save_pretrained(folder / "base")
    methods = ["lora-continued", "lora", "lora-on-ft", "sft"]
    run_study(
        compare,
        methods,
        source,
        folder / "study",
        {**PLAIN, "lora_rank": 2, "learning_rate": 1e-2},
        base=folder / "base",
        seeds=2,
        keep_checkpoints=True,
    )
    return folder


def test_lora_starts_from_the_base_and_says_so(source: TrainingData, loras: Path) -> None:
    """What was added to the base is of the adapters' rank: by an SVD, not by our word."""
    study, base = loras / "study", weights(loras / "base")
    tuned = weights(Path(source.model))
    for method, start, ranks in (
        ("lora", base, {2}),
        ("lora-on-ft", tuned, {2}),
        # Two adapters, of one seed: they begin with the same rows.
        ("lora-continued", base, {3, 4}),
        ("lora-continued", weights(study / "checkpoints" / "lora-1"), {2}),
    ):
        after = weights(study / "checkpoints" / f"{method}-1")
        for name in after:
            moved = after[name] - start[name]
            if not name.endswith("_proj.weight"):
                assert not moved.any(), (method, name)
            else:
                assert int(torch.linalg.matrix_rank(moved, atol=1e-5)) in ranks, (method, name)
    record = load_study(study)
    starts = {method: record.setting("from", method) for method in record.spec["methods"]}
    assert starts == {
        **{"base": None, "lora": "base", "lora-continued": "base"},
        **{"ft": None, "sft": "ft", "lora-on-ft": "ft"},
    }
    (table,) = summarize_sweep(record).tables()
    assert {row[:2] for row in table.rows} == {
        (method, start or "-") for method, start in starts.items()
    }
    assert "lora (from base)" in " ".join(summarize_sweep(record).sentences())


def test_continued_lora_is_trained_alike_without_lora_beside_it(
    source: TrainingData, loras: Path, tmp_path: Path
) -> None:
    settings = {**PLAIN, "lora_rank": 2, "learning_rate": 1e-2}
    axes = {"base": loras / "base", "seeds": 1}
    run_study(compare, "lora-continued", source, tmp_path / "s", settings, **axes)
    alone = value(tmp_path / "s", method="lora-continued")
    assert alone == value(loras / "study", method="lora-continued", seed=0)
    assert not list((tmp_path / "s").glob(".*[!k]")), "nothing but the lock is left"


def test_another_base_is_another_study(source: TrainingData, loras: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "s", {**PLAIN, "lora_rank": 2}
    run_study(compare, "lora", source, out, settings, base=loras / "base", seeds=1)
    with pytest.raises(DeltaLensError, match=r"settings\.lora\.model"):
        run_study(compare, "lora", source, out, settings, base=source.model, seeds=1)
    with pytest.raises(DeltaLensError, match=r"settings\.lora\.from: 'base' in the folder, 'ft'"):
        run_study(compare, "lora", source, out, settings, seeds=1)
    with pytest.raises(DeltaLensError, match="lora-continued needs the checkpoint of the base"):
        run_study(compare, "lora-continued", source, out, settings, seeds=1)


def test_masks_at_the_complement_ratio(source: TrainingData, tmp_path: Path) -> None:
    """As many weights are zero as torch counts; the smallest ones for L1."""
    methods, masked = ["l1-mask", "random-mask-weights"], {"mask_ratio": "0.25", "blocks": "1"}
    study = tmp_path / "study"
    chosen, spec = study_spec(methods, **PLAIN, **masked)
    both = with_complements(chosen)
    compare(both, source, study, spec, seeds=1, keep_checkpoints=True)
    name = "model.layers.1.mlp.up_proj.weight"
    before = weights(Path(source.model))[name]
    order = before.abs().flatten().argsort()
    for method, ratio in [(one, 0.25) for one in methods] + [
        (f"{one}-complement", 0.75) for one in methods
    ]:
        after = weights(study / "checkpoints" / f"{method}-0")[name]
        count = round(ratio * before.numel())
        assert int((after == 0).sum()) == count, method
        if method.startswith("l1"):
            assert not after.flatten()[order[:count]].any()
    record = load_study(study)
    assert record.setting("mask_ratio", "l1-mask-complement") == "0.75"
    turned = {**PLAIN, **masked, "complement": True}
    axes: dict[str, Any] = {"seeds": 1, "keep_checkpoints": True}
    run_study(compare, "l1-mask", source, tmp_path / "turned", turned, **axes)
    after = weights(tmp_path / "turned" / "checkpoints" / "l1-mask-0")[name]
    assert int((after == 0).sum()) == round(0.75 * before.numel())
    own = training_spec("l1-mask", **masked, complement=True)
    train(source.model, source.data, tmp_path / "alone", own)
    kept = study / "checkpoints" / "l1-mask-complement-0"
    assert torch.equal(weights(tmp_path / "alone")[name], weights(kept)[name])
    assert draw(study)
    with pytest.raises(DeltaLensError, match="have a complement: random-mask-weights, l1"):
        with_complements(study_spec("mft")[0])


def test_a_threshold_is_of_learned_scores_alone(source: TrainingData, tmp_path: Path) -> None:
    settings = {**SCORED, "threshold": -0.03}
    for name in ("l1-mask", "random-mask-weights", "l1-mask-complement"):
        with pytest.raises(DeltaLensError, match=f"threshold: {name} cannot use it"):
            run_study(compare, ["mft", name], source, tmp_path / "s", settings, seeds=1)
    assert not (tmp_path / "s").exists()
