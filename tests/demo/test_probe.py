"""`deltalens demo probe`: the demo's fine-tuning with a probe on, made once and then shown."""

import dataclasses
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltalens import DeltaLensError, load_run
from deltalens.cli import monitor, steps
from deltalens.cli.commands import COMMANDS
from deltalens.cli.generate import Command, Terminal
from deltalens.cli.main import app
from deltalens.demo import Recipe, build_demo, build_probe_run, stages
from deltalens.io.records import run as runs
from tests.support.demo import TINY, tiny_models

PICTURES = ("gradient_histograms", "mask_overlap", "overlap_by_layer", "coverage", "updates")


def trained(folder: Path, recipe: Recipe = TINY) -> list[str]:
    """Ask for the run; which stages were trained for it."""
    reported: dict[str, None] = {}
    build_probe_run(folder, recipe=recipe, report=lambda name, *_: reported.update({name: None}))
    return list(reported)


def steps_logged(folder: Path) -> list[int]:
    return sorted(load_run(folder / "probe-run").tensors["step"].unique())


def weights(checkpoint: Path) -> bytes:
    return (checkpoint / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo without a probe."""
    return build_demo(tmp_path_factory.mktemp("plain"), recipe=TINY).folder


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that began with the probe."""
    return build_probe_run(tmp_path_factory.mktemp("probed"), recipe=TINY).folder


@pytest.fixture
def copied(plain: Path, tmp_path: Path) -> Path:
    """A copy of the demo without a probe."""
    return Path(shutil.copytree(plain, tmp_path / "demo"))


def test_probe_leaves_both_models_as_they_are_without_it(plain: Path, probed: Path) -> None:
    for name in ("base", "ft"):
        assert weights(plain / name) == weights(probed / name)
    assert weights(plain / "ft") != weights(plain / "base")


def test_every_step_is_logged_with_overlap_and_updates(probed: Path) -> None:
    run = load_run(probed / "probe-run")
    assert steps_logged(probed) == list(range(TINY.finetune_steps))
    assert run.masks["jaccard_previous"].notna().any()
    assert run.tensors["bits_changed"].notna().all()


def test_plain_demo_reuses_what_the_probe_made(
    probed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "train", None)
    assert build_demo(probed, recipe=TINY).ft == probed / "ft"
    assert (probed / "demo.json").is_file()


def test_probe_reuses_what_a_plain_demo_made(copied: Path) -> None:
    before = [(copied / name).stat().st_ino for name in ("base", "ft")]
    assert trained(copied) == ["ft"]
    assert [(copied / name).stat().st_ino for name in ("base", "ft")] == before
    assert steps_logged(copied) == list(range(TINY.finetune_steps))


def test_finished_run_is_found_without_torch(probed: Path) -> None:
    program = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # from here on, importing them fails
from pathlib import Path
from deltalens.demo import Recipe, build_probe_run
recipe = Recipe(**{dataclasses.asdict(TINY)})
print(build_probe_run(Path({str(probed)!r}), recipe=recipe).probe_run)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == str(probed / "probe-run"), done.stderr


def test_interrupted_training_leaves_no_run_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name == "ft" and done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_probe_run(tmp_path, recipe=TINY, report=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "data"]
    assert trained(tmp_path) == ["ft"]
    assert trained(tmp_path) == []


def test_run_that_lost_steps_is_not_kept(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DeltaLensError("no space left")

    monkeypatch.setattr(runs, "write_parquet", full)
    with (
        pytest.warns(UserWarning, match="no space left"),
        pytest.raises(DeltaLensError, match="logged 0 of 5 steps"),
    ):
        trained(copied)
    assert sorted(path.name for path in copied.glob("*probe*")) == []


def test_another_recipe_makes_all_anew(copied: Path) -> None:
    trained(copied)
    assert trained(copied, dataclasses.replace(TINY, seed=1)) == ["base", "ft"]
    assert trained(copied, dataclasses.replace(TINY, seed=1)) == []


@pytest.mark.parametrize("name", ["base", "ft", "probe-run"])
def test_folder_that_no_demo_wrote_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").touch()
    with pytest.raises(DeltaLensError, match=f"{name} is there already"):
        trained(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == [name, "mine"]


# --- as typed -------------------------------------------------------------------------------------


def typed(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["demo", *map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands make the tiny demo."""
    tiny_models(monkeypatch)


@pytest.mark.usefixtures("tiny")
def test_question_summary_and_pictures_are_shown(probed: Path) -> None:
    text = typed("probe", "-o", probed)
    run = probed / "probe-run"
    assert f"$ deltalens monitor {run}\n" in text
    assert "5 steps logged, 0 to 4" in text
    for name in PICTURES:
        for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
            content = (run / f"{name}.{kind}").read_bytes()
            assert content.startswith(start)
            assert len(content) > 8000
            assert f"picture: {run / name}.{kind}\n" in text


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("order", ["-q -o {} probe", "probe -q -o {}", "-q probe -o {}"])
def test_options_count_on_either_side_of_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    shown = []
    monkeypatch.setattr(
        monitor, "monitor", lambda folder, quiet, **how: shown.append((folder, quiet))
    )
    assert typed(*order.format(tmp_path).split()) == ""
    assert shown == [(tmp_path / "probe-run", True)]


@pytest.mark.usefixtures("tiny")
def test_demo_alone_asks_its_three_questions(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def keep(command: Command, terminal: Terminal, typed: dict[str, object]) -> None:
        called.append((command.name, typed, terminal.quiet))

    monkeypatch.setattr(steps, "COMMANDS", [replace(command, run=keep) for command in COMMANDS])
    text = typed("-o", copied)
    pair = {"ft": str(copied / "ft"), "base": str(copied / "base")}
    places = [copied / name for name in ("anatomy", "study-fidelity", "study-maths")]
    test = copied / "data" / "maths_test.jsonl"
    assert called == [
        ("inspect", {**pair, "out": places[0]}, False),
        ("drop-study", {**pair, "out": places[1]}, False),
        ("drop-study", {**pair, "out": places[2], "data": [test]}, False),
    ]
    both = f"{pair['ft']} {pair['base']}"
    assert [line for line in text.splitlines() if line.startswith("$")] == [
        f"$ deltalens inspect {both} -o {places[0]}",
        f"$ deltalens drop-study {both} -o {places[1]}",
        f"$ deltalens drop-study {both} -o {places[2]} --data {test}",
    ]
    assert not (copied / "probe-run").exists()
