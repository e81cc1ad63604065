"""`deltalens monitor` as a user types it."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from deltalens import GradientProbe, load_run
from deltalens.catalog.layers import layer_group
from deltalens.cli import monitor
from deltalens.cli.main import app
from deltalens.io.records import find_run
from deltalens.io.records.run import RUN
from deltalens.io.records.training_record import TRAINING

STEPS = 12
PICTURES = ("gradient_histograms", "mask_overlap", "overlap_by_layer", "coverage", "updates")
ONE_GROUP = "q_proj"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.up_proj = nn.Linear(8, 8), nn.Linear(8, 8)
        self.input_layernorm = nn.LayerNorm(8)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.up_proj(torch.tanh(self.q_proj(self.input_layernorm(hidden))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.lm_head = nn.Linear(8, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed_tokens(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.lm_head(hidden)
        return logits


def train(folder: Path, steps: int = STEPS, spoiled: int | None = None, **spec: object) -> Path:
    """A run of so many steps; at one, a gradient holds a NaN."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with GradientProbe(model, folder, **spec):  # type: ignore[arg-type]
        for step in range(steps):
            ids = torch.randint(0, 11, (6, 5))
            loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
            loss.backward()
            if step == spoiled:
                assert model.lm_head.weight.grad is not None
                model.lm_head.weight.grad[0, 0] = math.nan
            optimizer.step()
            optimizer.zero_grad()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "run", updates=True)


@pytest.fixture
def rendered_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that drawing does is done, once, but files stay empty. With ink it takes far longer:
    once, in `test_demo_probe.py`."""
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig",
        lambda figure, file, format, **_: format == "png" and figure.draw_without_rendering(),
    )


def typed(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["monitor", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def just_begun(run: Path, folder: Path) -> None:
    """What a run's folder holds before its first step is written."""
    held = RUN.read(run)
    folder.mkdir(exist_ok=True)
    RUN.write(folder, {name: held[name] for name in ("asked", "facts")})


def group(shown: dict, name: str) -> dict:
    (found,) = (one for one in shown["groups"] if one["group"] == name)
    return found


def test_summary_names_the_groups_and_what_was_logged(run):
    text = typed(run, "--no-pictures")
    for expected in ("embeddings", "attention", "MLP", "norms", "output head", "bits changed"):
        assert expected in text
    assert "12 steps logged, 0 to 11; 14 tensors" in text


def test_json_gives_the_numbers_that_the_tables_give(run):
    shown = json.loads(typed(run, "--json", "--no-pictures"))
    record = load_run(run)
    last = record.tensors[record.tensors["step"] >= 10]
    assert (shown["steps"], shown["averaged"], shown["pictures"]) == (STEPS, 2, [])
    assert shown["entries"] == sum(record.facts["tensors"].values())
    for name in ("attention", "MLP", "norms", "embeddings", "output head"):
        found = group(shown, name)
        rows = last[[layer_group(tensor) == name for tensor in last["tensor"]]]
        names = set(rows["tensor"])
        assert found["tensors"] == len(names)
        norms = [math.sqrt((one["norm"] ** 2).sum()) for _, one in rows.groupby("step")]
        assert found["norm"] == pytest.approx(np.mean(norms))
        changed = np.average(rows["bits_changed"], weights=rows["entries"])
        assert found["bits_changed"] == pytest.approx(changed)
        assert found["zeros"] == pytest.approx(rows["zeros"].sum() / rows["entries"].sum())
        for mask in found["masks"]:
            of_group = record.masks[
                record.masks["tensor"].isin(names)
                & (record.masks["mask_ratio"] == mask["mask_ratio"])
            ]
            ended, end = of_group[of_group["step"] >= 10], of_group[of_group["step"] == 11]
            for key, column, frame in (
                ("overlap", "jaccard_previous", ended),
                ("chance", "chance_previous", ended),
                ("coverage", "coverage", end),
            ):
                expected = np.average(frame[column], weights=frame["entries"])
                assert mask[key] == pytest.approx(expected)


def test_median_lies_within_the_bin_of_the_true_one(tmp_path):
    run = train(tmp_path / "run", steps=1, include="up_proj.weight")
    (found,) = json.loads(typed(run, "--json", "--no-pictures"))["groups"]
    bins = load_run(run).histograms
    magnitudes = np.repeat((bins["low"] + bins["high"]) / 2, bins["count"])
    assert found["median"] == pytest.approx(np.median(magnitudes), rel=0.3)


@pytest.mark.usefixtures("rendered_nowhere")
def test_pictures_are_drawn_as_png_and_svg(run):
    text = typed(run)
    for name in PICTURES:
        for kind in ("png", "svg"):
            assert (run / f"{name}.{kind}").is_file()
            assert f"picture: {run / name}.{kind}\n" in text


def test_folder_that_is_no_run_is_refused(tmp_path):
    said = typed(tmp_path, code=2)
    assert "no run here (no run.json), and no training that could hold one" in said


def test_the_last_run_of_a_training_is_found_in_its_folder(run, tmp_path):
    TRAINING.write(tmp_path, {"asked": {}, "facts": {}})
    refused = typed(tmp_path, code=2)
    assert "a training without a run: train with probe to log one" in " ".join(refused.split())
    for name in ("run-from-9", "run-from-10", "run-from-x", "run", "run.lost-1"):
        shutil.copytree(run, tmp_path / name)
    (tmp_path / "run-from-11").mkdir()
    assert f"{tmp_path / 'run-from-10'}\n" in typed(tmp_path, "--no-pictures")
    shutil.rmtree(tmp_path / "run-from-10")
    shutil.rmtree(tmp_path / "run-from-9")
    assert f"{tmp_path / 'run'}\n" in typed(tmp_path, "--no-pictures")
    assert find_run(tmp_path / "run") == tmp_path / "run"


@pytest.mark.usefixtures("rendered_nowhere")
def test_run_without_masks_shows_and_draws_the_rest(tmp_path):
    run = train(tmp_path / "run", steps=3, mask_ratios=(), overlap=False, include=ONE_GROUP)
    text = typed(run)
    assert "attention" in text
    assert "overlap" not in text
    assert {path.stem for path in run.glob("*.png")} == {"gradient_histograms"}


@pytest.mark.usefixtures("rendered_nowhere")
def test_masks_that_were_not_compared_show_no_overlap(tmp_path):
    run = train(tmp_path / "run", steps=3, overlap=False, include=ONE_GROUP)
    shown = json.loads(typed(run, "--json"))
    assert group(shown, "attention")["masks"][0] == {
        "mask_ratio": 0.2,
        "overlap": None,
        "chance": None,
        "coverage": None,
    }
    assert {path.stem for path in run.glob("*.png")} == {"gradient_histograms"}


@pytest.mark.usefixtures("rendered_nowhere")
def test_run_of_one_step_is_drawn(tmp_path):
    run = train(tmp_path / "run", steps=1, include=ONE_GROUP)
    typed(run)
    assert {path.stem for path in run.glob("*.png")} == {"gradient_histograms", "coverage"}


def test_run_that_is_still_open_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("deltalens.io.records.run.PART_SECONDS", 0.0)
    monkeypatch.setattr("deltalens.io.records.run.RunWriter.close", lambda writer: writer.flush())
    run = train(tmp_path / "run", steps=3)
    assert len(list((run / "tensors").glob("*.parquet"))) > 1
    assert "3 steps logged" in typed(run, "--no-pictures")


def test_run_without_rows_says_so(run, tmp_path):
    just_begun(run, tmp_path)
    assert "no step logged yet" in typed(tmp_path)
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.filterwarnings("ignore:step ")
def test_nan_is_called_out_with_its_first_step(tmp_path):
    run = train(tmp_path / "run", steps=3, spoiled=1)
    (fault, *_) = json.loads(typed(run, "--json", "--no-pictures"))["faults"]
    assert (fault["tensor"], fault["what"], fault["first_step"]) == ("lm_head.weight", "NaN", 1)
    assert "NaN in the gradient of 'lm_head.weight': first at step 1" in " ".join(
        typed(run, "--no-pictures").split()
    )


def test_followed_run_ends_well_at_ctrl_c(run, monkeypatch):
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(monitor.time, "sleep", interrupted)
    monkeypatch.setattr("deltalens.figures.draw_figure", lambda name, run: [run / "a.png"])
    text = typed(run, "--follow")
    assert "12 steps logged" in text
    assert f"picture: {run / 'a.png'}" in text
    assert "Traceback" not in text


def test_followed_run_shows_what_was_added(run, tmp_path, monkeypatch):
    looks = []

    def meanwhile(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) > 1:
            raise KeyboardInterrupt
        for table in ("histograms", "tensors", "masks"):
            shutil.copytree(run / table, tmp_path / table)

    just_begun(run, tmp_path)
    monkeypatch.setattr(monitor.time, "sleep", meanwhile)
    assert "12 steps logged" in typed(tmp_path, "--follow", "--no-pictures")


def test_quiet_prints_nothing_and_follow_refuses_it(run):
    assert typed(run, "--quiet", "--no-pictures") == ""
    assert "--follow" in typed(run, "--follow", "-q", code=2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", "norms"),
        ("transformer.h.0.ln_1.weight", "norms"),
        ("transformer.ln_f.bias", "norms"),
        ("transformer.h.0.mlp.c_fc.weight", "MLP"),
        ("transformer.wte.weight", "embeddings"),
        ("lm_head.weight", "output head"),
        ("encoder.layer.0.attention.output.LayerNorm.weight", "norms"),
        ("x.1.balance.weight", "other"),
    ],
)
def test_group_follows_from_the_name(name, expected):
    assert layer_group(name) == expected
