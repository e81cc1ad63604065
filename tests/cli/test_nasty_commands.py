"""Every command, whole, on files and folders with nasty names: what is printed, written and drawn
obeys nothing of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from tests.support.nasty import FORMULA, NAME, faults_of, obeyed
from tests.support.runs import command
from tests.support.training_folders import write_model, write_rows

pytestmark = pytest.mark.bad_input


@dataclass(frozen=True)
class Made:
    """Two checkpoints and rows, all called so."""

    ft: Path
    base: Path
    rows: Path
    more: Path
    out: Path

    def line(self, name: str) -> list[object]:
        """A command's words."""
        field = ["--prompt-field", NAME]
        both = [self.ft, self.base, "--data", self.rows, "--data", self.more, "--limit", 8, *field]
        data = ["--train-data", self.rows, "--train-limit", 8, *field]
        tests = ["--eval-data", self.rows, "--eval-data", self.more]
        training = [self.ft, *data, *tests, "--steps", 1, "--seeds", 1]
        given: dict[str, list[object]] = {
            "inspect": [self.ft, self.base, "--tensors"],
            "drop": [self.ft, self.base],
            "drop-study": [*both, "--rates", "0.5", "--seeds", 1],
            "landscape": [*both, "--grid", 3],
            "evaluate": both,
            "salience": [self.base, *both[2:], "--against", self.ft, "--batch-size", 4],
            "efficiency": ["gmt", self.ft, *data, "--repeats", 1, "--block-steps", 1],
            "compare": ["mft,sft", *training, "--eval-every", 1],
            "sweep layers-drop": [*both, "--group-sizes", 1],
            "sweep layers": ["mft", *training, "--group-sizes", 2],
            "sweep mask-ratio": ["gmt,hft", *training, "--mask-ratios", "0.5"],
            "sweep data-ratio": ["mft,sft", *training, "--data-ratios", "0.5"],
            "sweep density": ["sft,lora", *training, "--ranks", 1],
            "sweep masks": ["speft:examples=8", *training, "--refresh-every", 1],
            "train sft": [self.ft, *data, *tests, "--steps", 10, "--probe", "--eval-every", 5],
            "train mft": [self.ft, *data, "--steps", 1, "--threshold", "-0.03"],
        }
        return [*name.split(), *given[name], "-o", self.folder(name)]

    def folder(self, name: str) -> Path:
        """Where a command writes."""
        return self.out / f"{name} {NAME}"


LIGHT = (
    *("inspect", "drop", "drop-study", "evaluate", "landscape", "salience"),
    *("sweep layers-drop", "train sft"),
)
TRAINED = (
    "efficiency",
    "compare",
    "sweep layers",
    "sweep mask-ratio",
    "sweep data-ratio",
    "sweep density",
    "sweep masks",
    "train mft",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("nasty")
    inside = folder / NAME
    inside.mkdir()
    rows, more = (inside / f"{name}.jsonl" for name in (NAME, FORMULA))
    found = Made(inside / f"ft{NAME}", inside / "base", rows, more, inside)
    write_model(folder / "plain")
    (folder / "plain").rename(found.base)
    model = AutoModelForCausalLM.from_pretrained(found.base)
    with torch.no_grad():
        for place, one in enumerate(model.parameters()):
            one.add_(0.02 * torch.randn(one.shape, generator=torch.Generator().manual_seed(place)))
    write_model(folder / "ft")
    model.save_pretrained(folder / "ft")
    (folder / "ft").rename(found.ft)
    held = [{NAME: f"{i}+1=", "completion": str(i + 1), FORMULA: NAME} for i in range(8)]
    write_rows(rows, held)
    write_rows(more, held)
    return found


def is_clean(result: Result, code: int = 0) -> None:
    """It went as it should, and its raw output obeys nothing; nor is a line of it a name's own."""
    said = (result.output[-2000:], result.exception)
    assert result.exit_code == code, said
    assert obeyed(result.stdout_bytes) == []
    assert obeyed(result.stderr_bytes) == []
    assert not [line for line in result.stderr.splitlines() if line.startswith("  - [bold]")]


def everything_of(made: Made, name: str) -> None:
    """A command, its pictures again, and its JSON."""
    line, out = made.line(name), made.folder(name)
    first = command(*line)
    is_clean(first)
    assert r"\x1b]52" in first.stdout
    if name not in ("drop", "train sft"):
        is_clean(command("plot", out))
    assert faults_of(out) == []
    if name == "train sft":
        is_clean(command("monitor", out / "run"))
        assert faults_of(out / "run") == []
    if name not in ("drop", "train sft", "train mft"):
        again = command(*line, "--json")
        is_clean(again)
        assert any(NAME in str(picture) for picture in json.loads(again.stdout)["pictures"])


@pytest.mark.parametrize("name", LIGHT)
def test_a_command_shows_names_and_obeys_none(made: Made, name: str) -> None:
    everything_of(made, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_studies_of_trainings_show_names_and_obey_none(made: Made, name: str) -> None:
    everything_of(made, name)
