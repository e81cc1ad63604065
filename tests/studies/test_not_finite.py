"""Models that compute NaN or infinities: said before the first cell, recorded as they are, claimed
of nothing. The oracle of what is finite is plain transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deltalens
from deltalens.errors import DeltaLensError
from deltalens.io.records import StudyRecord, load_study
from deltalens.reports.drop import summarize_drop_study
from deltalens.reports.layers import summarize_layers
from deltalens.scoring import loading as module
from deltalens.scoring.fidelity import Fidelity, sample_texts
from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.rows import read_rows
from tests.support.checkpoint_pairs import Pair, fine_tune, plain
from tests.support.models import initialized, llama, save, tokenizer
from tests.support.runs import FEW, command, write_rows
from tests.support.studies import drop_study, sweep_layers_drop

pytestmark = pytest.mark.bad_input

ROWS = [{"prompt": f"{n}+{n}=", "completion": str(2 * n)} for n in range(1, 7)]


@torch.no_grad()
def overflow(model: Any) -> Any:
    """Weights that fp16 holds, and activations that it does not."""
    for layer in model.model.layers:
        layer.mlp.gate_proj.weight.mul_(300)
        layer.mlp.up_proj.weight.mul_(300)
        layer.mlp.down_proj.weight.mul_(3000)
    return model


def write(folder: Path, ft: bool, base: bool) -> Pair:
    """A pair in fp16; which of them overflows."""
    pair = Pair(folder / "ft", folder / "base")
    for path, breaks, tune in ((pair.base, base, False), (pair.ft, ft, True)):
        model = initialized(lambda: llama(False), seed=1)
        if tune:
            fine_tune(model, scale=0.01)
        save((overflow(model) if breaks else model).half(), path)
    return pair


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write(tmp_path_factory.mktemp("broken"), ft=True, base=True)


@pytest.fixture(scope="module")
def broken_base(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write(tmp_path_factory.mktemp("base"), ft=False, base=True)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "sums.jsonl", ROWS)


def computes_numbers(folder: Path, dtype: torch.dtype) -> bool:
    """By transformers alone."""
    model = plain(folder, dtype)
    with torch.inference_mode():
        return all(
            bool(model(**tokenizer()(row["prompt"], return_tensors="pt")).logits.isfinite().all())
            for row in ROWS
        )


def test_the_pairs_are_what_these_tests_take_them_for(broken: Pair, broken_base: Pair) -> None:
    assert not computes_numbers(broken.ft, torch.float16)
    assert computes_numbers(broken.ft, torch.float32)
    assert computes_numbers(broken_base.ft, torch.float16)
    assert not computes_numbers(broken_base.base, torch.float16)
    for name, parameter in plain(broken.ft).named_parameters():
        assert parameter.isfinite().all(), name


@pytest.mark.parametrize(
    "line",
    [
        ("drop-study", "FT", "BASE", "--fidelity-tokens", 8),
        ("drop-study", "FT", "BASE", "--data", "ROWS"),
        ("sweep", "layers-drop", "FT", "BASE"),
        ("sweep", "layers-drop", "FT", "BASE", "--data", "ROWS"),
        ("landscape", "FT", "BASE", "--data", "ROWS", "--dtype", "float16", "--grid", 3),
        ("landscape", "FT", "--metrics", "kl", "--dtype", "float16", "--grid", "3x3"),
        (
            *("landscape", "FT", "--data", "ROWS", "--dtype", "float16", "--plane", "hessian"),
            *("--grid", 3),
        ),
        ("train", "gmt", "FT", "--train-data", "ROWS", "--dtype", "float16", "--steps", 1),
        (
            *("efficiency", "gmt", "FT", "--train-data", "ROWS"),
            *("--dtype", "float16", "--batch-size", 2),
        ),
        (
            *("compare", "l1-mask", "FT", "--train-data", "ROWS", "--eval-data", "ROWS"),
            *("--dtype", "float16"),
        ),
    ],
    ids=lambda line: " ".join(str(part) for part in line[:4]),
)
def test_every_study_says_so_before_its_first_cell(
    broken: Pair, rows: Path, tmp_path: Path, line: tuple[object, ...]
) -> None:
    named: dict[object, Path] = {"FT": broken.ft, "BASE": broken.base, "ROWS": rows}
    result = command(*(named.get(part, part) for part in line), "-o", tmp_path / "out")
    assert result.exit_code == 2, (result.output, result.exception)
    (said,) = [text for text in result.output.splitlines() if text.startswith("deltalens: ")]
    assert "in float16 the model computes NaN or infinite logits" in said
    assert ": bfloat16 or float32" in said
    assert str(broken.ft) in said
    assert not (tmp_path / "out").exists()


def test_weights_that_the_dtype_does_not_hold_are_named(rows: Path, tmp_path: Path) -> None:
    model = initialized(lambda: llama(False), seed=1)
    save(model, tmp_path / "base")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = 1e6
    save(model, tmp_path / "ft")
    with pytest.raises(
        DeltaLensError, match=r"finite:\n  - model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        deltalens.drop_study(
            tmp_path / "ft", tmp_path / "base", tmp_path / "s", data=[rows], dtype="float16"
        )


def drop(pair: Pair, out: Path, **more: Any) -> StudyRecord:
    return drop_study(
        pair.ft, pair.base, out, rates="0.5", strategies=["trivial"], fidelity=FEW, **more
    )


def layers(pair: Pair, out: Path, **more: Any) -> StudyRecord:
    return sweep_layers_drop(pair.ft, pair.base, out, fidelity=FEW, **more)


@pytest.mark.parametrize("with_data", [True, False])
@pytest.mark.parametrize("study", [drop, layers])
def test_fine_tune_that_computes_numbers_is_studied_whatever_its_base_does(
    broken_base: Pair,
    rows: Path,
    tmp_path: Path,
    study: Callable[..., StudyRecord],
    with_data: bool,
) -> None:
    record = study(broken_base, tmp_path / "s", data=[rows] if with_data else [])
    cells = record.cells
    is_base = cells["rate"] == 1 if "rate" in cells else cells["method"] == "base"
    is_ft = cells["rate"] == 0 if "rate" in cells else cells["method"] == "ft"
    assert cells[is_ft]["value"].notna().all()
    # Each metric of the base, exact match and agreement too: no perplexity is infinite.
    assert cells[is_base]["value"].isna().all()
    summary: Any = summarize_drop_study(record) if study is drop else summarize_layers(record)
    said = " ".join(summary.sentences())
    assert "of the base is not finite" in said
    assert "half" not in said
    assert "of the gain from tuning" not in said


class Sometimes(nn.Module):
    """A model that computes NaN for texts with a certain token."""

    def __init__(self, model: Any, token: int) -> None:
        super().__init__()
        self.model, self.token, self.config = model, token, model.config

    def can_generate(self) -> bool:
        return True

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        output = self.model(input_ids=input_ids, **more)
        hit = (input_ids == self.token).any(1)
        output.logits[hit] = math.nan
        return output


def sometimes(folder: Path) -> Sometimes:
    (token,) = tokenizer()("3", add_special_tokens=False)["input_ids"]
    return Sometimes(plain(folder, torch.float32), token)


def test_one_row_without_numbers_makes_the_data_s_metrics_nan(
    broken_base: Pair, rows: Path
) -> None:
    model = sometimes(broken_base.ft)
    scoring = Scoring(read_rows(rows), model, tokenizer(), 4096)
    found = scoring.measure(model)
    assert {name for name, m in found.items() if math.isnan(m.value)} == {
        *("loss", "perplexity", "exact_match")
    }


def test_positions_without_numbers_agree_with_nothing(broken_base: Pair) -> None:
    good, model = plain(broken_base.ft, torch.float32), sometimes(broken_base.ft)
    texts = [[1, 7, 8, 9], [1, model.token, 8, 9]]
    found = Fidelity(good, texts).measure(model)
    assert math.isnan(found["kl"].value)
    assert math.isnan(found["top1_agreement"].value)


def test_class_that_a_model_rules_out_is_no_fault(broken_base: Pair, rows: Path) -> None:
    class Ruled(Sometimes):
        def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
            output = self.model(input_ids=input_ids, **more)
            output.logits[..., self.token] = -math.inf
            return output

    model = Ruled(plain(broken_base.ft, torch.float32), 0)
    scoring = Scoring(read_rows(rows), model, tokenizer(), 4096)
    scoring.check(model, "ft")
    assert all(math.isfinite(m.value) for m in scoring.measure(model).values())
    assert Fidelity(model, [[1, 7, 8, 9]]).measure(model)["kl"].value == 0


def test_texts_are_not_sampled_from_what_is_no_number(broken: Pair) -> None:
    with pytest.raises(DeltaLensError, match="in float16 the model computes NaN"):
        sample_texts(plain(broken.ft, torch.float16), 2, 4, seed=0)


def test_fine_tune_without_numbers_on_a_few_rows_is_said_at_the_first_cell(
    broken_base: Pair, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = module.load_model

    def loaded(*given: Any) -> Any:
        made = load(*given)
        (token,) = tokenizer()("3", add_special_tokens=False)["input_ids"]

        def spoil(model: Any, args: Any, kwargs: Any, output: Any) -> None:
            output.logits[(kwargs["input_ids"] == token).any(1)] = math.nan

        made.model.register_forward_hook(spoil, with_kwargs=True)
        return made

    monkeypatch.setattr(module, "load_model", loaded)
    with pytest.raises(DeltaLensError, match=r"\(exact_match, loss, perplexity: NaN\)"):
        drop(broken_base, tmp_path / "s", data=[rows])
    assert not (tmp_path / "s").exists()


def test_training_that_ends_in_nan_is_recorded_as_nan(
    broken_base: Pair, rows: Path, tmp_path: Path
) -> None:
    data = ("--train-data", rows, "--eval-data", rows)
    options = (*data, "--dtype", "float32", "--lr", "1e30", "--steps", 3)
    alone = command("train", "sft", broken_base.ft, *options, "-o", tmp_path / "t")
    assert "note: not finite at the end: exact_match, loss, perplexity" in alone.output
    line = ("compare", "sft", broken_base.ft, *options, "--seeds", 1)
    result = command(*line, "-o", tmp_path / "s")
    assert result.exit_code == 0, (result.output, result.exception)
    cells = load_study(tmp_path / "s").cells
    of_sft = cells[cells["method"] == "sft"].set_index("metric")["value"]
    assert of_sft[["exact_match", "loss", "perplexity"]].isna().all()
    assert "values of exact_match that are not finite are left out: sft (seed 0)" in result.output
    assert "best first: ft 0" in result.output
