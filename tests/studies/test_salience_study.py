"""`deltalens salience`, as a user types it: masks, what they share, and going on after a stop."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import deltalens
from deltalens.catalog.salience import SALIENCE_METRICS
from deltalens.io.mask_file import read_masks
from deltalens.studies.engine import StudyWatch
from tests.support.checkpoint_pairs import Pair, PairOf
from tests.support.runs import command, succeeds

ROWS = [{"prompt": f"ann {n}+{n}>", "completion": f"{2 * n}"} for n in range(16)]
DENSITY = "0.05"


@pytest.fixture(scope="module")
def pair(pair_of: PairOf, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model, and one whose weights differ from it by far less than their size."""
    base = pair_of(family="llama").base
    model = AutoModelForCausalLM.from_pretrained(base)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1e-3 * torch.randn(weight.shape, generator=draw)
    ft = tmp_path_factory.mktemp("tuned") / "ft"
    shutil.copytree(base, ft)
    model.save_pretrained(ft)
    return Pair(ft=ft, base=base)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def line(pair: Pair, rows: Path, out: Path, *more: object) -> list[object]:
    given = ["--data", rows, "--density", DENSITY, "--batch-size", 2, "--steps", 8]
    return ["salience", pair.base, *given, *more, "-o", out]


@pytest.fixture(scope="module")
def whole(pair: Pair, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of all metrics and a fine-tune."""
    out = tmp_path_factory.mktemp("study") / "study"
    succeeds(*line(pair, rows, out, "--against", pair.ft))
    return out


def value(study: Any, metric: str, part: str, of: str, number: str = "jaccard") -> float:
    cells = study.cells
    found = cells[
        (cells["salience"] == metric)
        & (cells["part"] == part)
        & (cells["of"] == of)
        & (cells["metric"] == number)
    ]
    (only,) = found["value"]
    return float(only)


def masks_in(out: Path, metric: str) -> dict[str, Tensor]:
    """Weight name -> flat mask."""
    found = {}
    for stored in read_masks(out / "masks" / f"{metric}.safetensors").masks:
        bits = torch.from_numpy(stored.bits)
        flat = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).bool().view(-1)
        found[f"{stored.name}.weight"] = flat[: torch.tensor(stored.shape).prod()]
    return found


def joined(masks: dict[str, Tensor]) -> Tensor:
    return torch.cat([masks[name] for name in sorted(masks)])


def jaccard(one: Tensor, other: Tensor) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_a_mask_is_the_top_of_the_metric(pair: Pair, whole: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair.base)
    wanted = deltalens.salience(model, [], "magnitude").indices(DENSITY)
    for name, mask in masks_in(whole, "magnitude").items():
        assert torch.equal(mask.nonzero().view(-1), wanted[name])


def test_every_metric_keeps_as_many(whole: Path) -> None:
    study = deltalens.load_study(whole)
    entries = study.facts["entries"]
    for metric in SALIENCE_METRICS:
        kept = joined(masks_in(whole, metric))
        assert int(kept.sum()) == round(float(DENSITY) * entries)
        assert value(study, metric, "budget", "all", "kept") == int(kept.sum())


def test_agreement_is_that_of_the_files(whole: Path) -> None:
    study, names = deltalens.load_study(whole), [*SALIENCE_METRICS]
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            wanted = jaccard(joined(masks_in(whole, one)), joined(masks_in(whole, other)))
            assert value(study, one, "agreement", other) == pytest.approx(wanted)
    assert value(study, "snip", "agreement", "taylor-fo") == 1


def test_a_budget_is_counted_where_the_weights_lie(whole: Path) -> None:
    study, masks = deltalens.load_study(whole), masks_in(whole, "gradient")
    for name, mask in masks.items():
        block, layer = name.removesuffix(".weight").split(".self_attn.")
        found = value(study, "gradient", "budget", f"{block}/self_attn.{layer}", "density")
        assert found == pytest.approx(float(mask.float().mean()))


@pytest.mark.parametrize("metric", ["snip", "magnitude", "random"])
def test_what_a_fine_tune_changed_most(metric: str, pair: Pair, whole: Path) -> None:
    study, masks = deltalens.load_study(whole), masks_in(whole, metric)
    ft, base = (load_file(folder / "model.safetensors") for folder in (pair.ft, pair.base))
    delta = torch.cat([(ft[n].float() - base[n].float()).abs().flatten() for n in sorted(masks)])
    kept = joined(masks)
    changed = torch.zeros_like(kept)
    changed[delta.topk(int(kept.sum())).indices] = True
    assert int((delta >= delta[changed].min()).sum()) == int(kept.sum())  # Nothing ties.
    found = value(study, metric, "fine-tune", "largest changes")
    assert found == pytest.approx(jaccard(kept, changed))


def test_parts_of_the_data_are_compared_with_all_of_it(whole: Path) -> None:
    study = deltalens.load_study(whole)
    assert [value(study, "gradient", "sample", of, "examples") for of in ("1/8", "1/4", "1/2")] == [
        *(2, 4, 8),
    ]
    for metric, facts in SALIENCE_METRICS.items():
        cells = study.cells[study.cells["salience"] == metric]
        assert ("sample" in set(cells["part"])) is not facts.data_free
    assert 0 <= value(study, "gradient", "sample", "halves") < 1


def test_it_says_what_it_found(whole: Path) -> None:
    said = " ".join(deltalens.load_study(whole).summary().split())
    assert "SNIP and Taylor-FO choose the same weights" in said
    assert "agree most" in said
    assert "two halves of the calibration data, of 8 examples each" in said
    assert "of the weights that the fine-tune changed most" in said
    assert "of an epoch's passes over 16 rows" in said
    assert "MB as int32" in said
    assert "only 8 of 64" not in said


def test_pictures_of_each_part(whole: Path) -> None:
    names = {file.stem for file in whole.glob("*.png")}
    assert names == {"salience_agreement", "salience_budget", "salience_samples"}


def test_numbers_for_scripts(pair: Pair, rows: Path, whole: Path) -> None:
    printed = json.loads(succeeds(*line(pair, rows, whole, "--against", pair.ft, "--json")))
    assert len(printed["agreement"]) == 36
    assert len(printed["fine_tune"]) == 9
    assert {Path(path).stem for path in printed["masks"].values()} == {*SALIENCE_METRICS}
    assert all(Path(path).exists() for path in printed["masks"].values())


def test_a_dry_run_writes_nothing(pair: Pair, rows: Path, tmp_path: Path) -> None:
    said = succeeds(*line(pair, rows, tmp_path / "out", "--dry-run"))
    assert "would run" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.resume
@pytest.mark.parametrize("stop_at", [1, 12, 25])
def test_a_stopped_study_goes_on(
    stop_at: int, pair: Pair, rows: Path, whole: Path, tmp_path: Path
) -> None:
    points = set()

    def stop(folder: Path, cell: Any) -> None:
        points.add((cell.setting["salience"], cell.setting["part"]))
        if len(points) == stop_at:
            raise KeyboardInterrupt

    given: dict[str, Any] = {
        "density": DENSITY,
        "batch_size": 2,
        "steps": 8,
        "against": pair.ft,
    }
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        deltalens.salience_study(pair.base, rows, out, watch=StudyWatch(on_cell=stop), **given)
    deltalens.salience_study(pair.base, rows, out, **given)
    assert (out / "cells.csv").read_bytes() == (whole / "cells.csv").read_bytes()
    for metric in SALIENCE_METRICS:
        assert torch.equal(joined(masks_in(out, metric)), joined(masks_in(whole, metric)))


def test_more_metrics_are_added_to_a_study(
    pair: Pair, rows: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    succeeds(*line(pair, rows, out, "--metrics", "fisher,magnitude", "-q"))
    succeeds(*line(pair, rows, out, "--metrics", "gradient", "--against", pair.ft, "-q"))
    succeeds(*line(pair, rows, out, "--metrics", "all", "--against", pair.ft, "-q"))
    assert (out / "cells.csv").read_bytes() == (whole / "cells.csv").read_bytes()


def test_few_rows_are_used_as_far_as_they_go(pair: Pair, rows: Path, tmp_path: Path) -> None:
    said = succeeds(
        *("salience", pair.base, "--data", rows, "--metrics", "gradient", "--density", DENSITY),
        *("--batch-size", 8, "-o", tmp_path / "out"),
    )
    assert "only 2 of 64 calibration batches" in " ".join(said.split())


@pytest.mark.parametrize("scope", ["layer", "tensor"])
def test_each_ranked_unit_has_its_share(scope: str, pair: Pair, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeeds(*line(pair, rows, out, "--scope", scope, "--metrics", "force", "--targets", "linear"))
    masks, kept, sizes = masks_in(out, "force"), {}, {}
    for name, mask in masks.items():
        unit = name if scope == "tensor" else ".".join(name.split(".")[:3])
        kept[unit] = kept.get(unit, 0) + int(mask.sum())
        sizes[unit] = sizes.get(unit, 0) + len(mask)
    assert kept == {unit: round(0.05 * size) for unit, size in sizes.items()}


BAD = {
    "metric": (["--metrics", "hessian"], "no salience metric 'hessian'"),
    "density": (["--density", "0"], r"density 0 is outside (0, 1]"),
    "too small": (["--density", "1e-9"], "leaves no weight"),
    "density 2": (["--density", "2"], "outside [0, 1]"),
    "scope": (["--scope", "all"], "scope 'all': choose one of"),
    "targets": (["--targets", "w_proj"], "no linear layer"),
    "expectation": (["--expectation", "between"], "choose inside or outside"),
    "hessian": (["--hessian", "full"], "choose exact or difference"),
    "sign": (["--sign", "0"], "choose 1 or -1"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_bad_options(
    given: list[str], message: str, pair: Pair, rows: Path, tmp_path: Path
) -> None:
    said = command(*line(pair, rows, tmp_path / "out", *given))
    assert said.exit_code == 2, said.output
    assert message in " ".join(said.output.split())
    assert not (tmp_path / "out" / "cells.jsonl").exists()


@pytest.mark.bad_input
def test_another_study_in_the_folder(pair: Pair, rows: Path, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    said = command(*line(pair, rows, out, "--seed", 3))
    assert said.exit_code == 2
    assert "seed" in said.output


@pytest.mark.parametrize(
    ("metrics", "options", "passes"),
    [
        ("gradient,grasp", {}, [("gradients of the loss", 2), ("Hessian products", 2)]),
        ("fisher,snip", {}, [("gradients of the loss", 2)]),
        (
            "grasp",
            {"hessian": "difference"},
            [("gradients of the loss", 2), ("Hessian products", 2)],
        ),
        (
            "grasp",
            {"hessian": "difference", "expectation": "outside"},
            [("Hessian products", 4)],
        ),
        ("grasp", {"expectation": "outside"}, [("Hessian products", 2)]),
        ("magnitude", {}, []),
    ],
)
def test_each_pass_tells_of_every_batch_and_then_come_the_cells(
    metrics: str,
    options: dict[str, Any],
    passes: list[tuple[str, int]],
    pair: Pair,
    rows: Path,
    tmp_path: Path,
) -> None:
    told: list[tuple[str, int | None, list[int]]] = []
    watch = StudyWatch(
        stage=lambda name, total: told.append((name, total, [])),
        advance=lambda steps: told[-1][2].append(steps),
    )
    given = {"metrics": metrics, "density": DENSITY, "batch_size": 4, "steps": 2, **options}
    deltalens.salience_study(pair.base, rows, tmp_path / "s", dtype="float32", watch=watch, **given)
    on_all = "salience on all examples: "
    found = [(name, total, steps) for name, total, steps in told if name.startswith(on_all)]
    assert found == [(on_all + name, total, [1] * total) for name, total in passes]
    last, total, steps = told[-1]
    assert (last, sum(steps)) == ("masks and comparisons", total)
