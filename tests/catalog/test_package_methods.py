"""A training method of another package: installed beside deltalens, it is listed, trained, swept,
compared, tabulated and drawn, without a file of ours touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.training_folders import write_model, write_rows

CODE = '''
from dataclasses import dataclass

from deltalens.catalog.methods import Look, MethodFacts
from deltalens.training.methods import Method, setting


@dataclass(frozen=True, kw_only=True)
class SignOnly(Method):
    """Keep the largest gradients' signs."""

    name = "sign-only"
    facts = MethodFacts(
        about="Only the signs of the largest gradients.",
        look=Look("Sign only", "#56B4E9", "p"),
        on_base=Look("Sign only", "#56B4E9", "p"),
        printed="Sign Only",
        masks="gradients",
        ratio=True,
    )

    mask_ratio: str = setting("0.5", "Fraction of each gradient masked out (0.5).")
    scale: float = setting(1e-3, "Length of a step (1e-3).")

    def callbacks(self, seed):
        from transformers import TrainerCallback

        from deltalens.integrations.transformers import SubscriberCallback
        from deltalens.methods.gmt import GradientMask

        class Signs(SubscriberCallback):
            def build(inner, model, first_step=0):
                return GradientMask(model, float(self.mask_ratio), first_step=first_step)

        return [Signs()]
'''
POINTS = "[deltalens.methods]\nsign-only = signs:SignOnly\n"


def package(site: Path, code: str = CODE, points: str = POINTS) -> Path:
    """What pip would leave of a package of one module."""
    info = site / "signs-1.4.dist-info"
    info.mkdir(parents=True)
    (site / "signs.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: signs\nVersion: 1.4\n")
    (info / "entry_points.txt").write_text(points)
    return site


def typed(site: Path, *line: object, code: int = 0) -> str:
    """What a command prints, in a process of its own with the package."""
    command = [str(Path(sys.executable).parent / "deltalens"), *map(str, line)]
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "120"}
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    return said


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = package(tmp_path_factory.mktemp("site"))
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    return folder


DATA = ("--train-data", "rows.jsonl", "--eval-data", "rows.jsonl", "--steps", 1, "--seeds", 1)


def test_it_is_listed_with_its_settings(site: Path) -> None:
    said = typed(site, "methods")
    assert "Only the signs of the largest gradients." in said
    assert "settings: mask-ratio, scale" in said
    assert "sign-only" in typed(site, "train", "--help")


def test_it_trains_with_its_own_options(site: Path) -> None:
    shown = typed(site, "train", "sign-only", "--help")
    assert "--scale X" in shown
    assert "--blocks" not in shown
    typed(
        site,
        "train",
        "sign-only",
        "model",
        "--train-data",
        "rows.jsonl",
        "--steps",
        1,
        "--scale",
        "2e-3",
        "--mask-ratio",
        "0.25",
        "-o",
        "trained",
    )
    manifest = (site / "trained" / "train.json").read_text()
    assert '"method": "sign-only"' in manifest
    assert '"scale": 0.002' in manifest
    assert '"mask_ratio": "0.25"' in manifest
    assert "scale 'x': not a number" in typed(
        site, "compare", "sign-only:scale=x", "model", *DATA, "-o", "no", code=2
    )


@pytest.mark.parametrize(
    "words",
    [
        ("sweep", "mask-ratio", "sign-only:scale=2e-3,gmt", "model", *DATA, "--mask-ratios", "0.5"),
        ("sweep", "data-ratio", "sign-only", "model", *DATA, "--data-ratios", "1"),
        ("compare", "sign-only,sft", "model", *DATA),
        (
            "efficiency",
            "sign-only",
            "model",
            "--train-data",
            "rows.jsonl",
            "--repeats",
            1,
            "--block-steps",
            1,
        ),
    ],
    ids=lambda words: " ".join(map(str, words[:2])),
)
def test_studies_run_print_and_draw_it(site: Path, words: tuple[object, ...]) -> None:
    out = site / f"study-{words[0]}-{words[1]}".replace(":", "-").replace(",", "-")
    said = typed(site, *words, "-o", out)
    assert "sign-only" in said or "Sign" in said
    assert "sign-only" in (out / "cells.csv").read_text()
    drawn = [picture.read_text() for picture in out.glob("*.svg")]
    assert any("Sign only" in text or "Sign Only" in text for text in drawn)


def test_one_that_starts_from_the_base_needs_it(site: Path, tmp_path: Path) -> None:
    code = CODE.replace("ratio=True,", "ratio=True,\n        from_base=True,")
    line = ("compare", "sign-only", site / "model", "--train-data", site / "rows.jsonl")
    line += ("--eval-data", site / "rows.jsonl", "-o", tmp_path / "s")
    said = typed(package(tmp_path, code), *line, code=2)
    assert "sign-only needs the checkpoint of the base: give --base" in said


def test_a_broken_one_is_a_line_that_names_its_package(tmp_path: Path) -> None:
    points = "[deltalens.methods]\nbroken = signs:NOTHING\n"
    folder = package(tmp_path, "NOTHING = 1\n", points)
    said = typed(folder, "methods", code=2)
    assert "method 'broken' of signs 1.4: signs:NOTHING has no `facts`" in said


def test_one_with_a_name_of_ours_is_passed_over(tmp_path: Path) -> None:
    points = "[deltalens.methods]\ngmt = signs:SignOnly\n"
    said = typed(package(tmp_path, CODE, points), "methods")
    assert "ignored, as deltalens itself has one of this name" in said
    assert "Only the signs" not in said
