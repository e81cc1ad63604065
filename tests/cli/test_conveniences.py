"""What people expect of a command line: dry runs, options from a file, errors as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import deltalens
from tests.support.checkpoint_files import save_llama_pair
from tests.support.runs import command
from tests.support.training_folders import write_model, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, a model to train, and rows."""
    folder = tmp_path_factory.mktemp("conveniences")
    save_llama_pair(folder)
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    return folder


def runs(folder: Path) -> dict[str, tuple[object, ...]]:
    model, rows = folder / "model", folder / "rows.jsonl"
    data = ("--train-data", rows, "--eval-data", rows, "--steps", 2, "--seeds", 2)
    return {
        "cells": ("drop-study", folder / "ft", folder / "base", "--rates", "0,0.5,1"),
        "points": ("landscape", folder / "ft", folder / "base", "--grid", 5, "--metrics", "kl"),
        "trainings": ("sweep", "mask-ratio", "gmt", model, *data, "--mask-ratios", "0.5"),
        "blocks": ("efficiency", "gmt", model, "--train-data", rows, "--repeats", 2),
        "steps": ("train", "gmt", model, "--train-data", rows, "--steps", 2),
    }


@pytest.mark.parametrize(
    ("what", "count"), [("cells", 7), ("points", 5), ("trainings", 4), ("blocks", 6)]
)
def test_a_dry_run_counts_and_writes_nothing(
    folder: Path, tmp_path: Path, what: str, count: int
) -> None:
    line = (*runs(folder)[what], "-o", tmp_path / "out", "--dry-run")
    said = command(*line)
    assert said.exit_code == 0, said.output
    assert f"would run: {count} {what}" in said.stdout
    assert "nothing was written" in said.stdout
    assert not (tmp_path / "out").exists()
    plan = json.loads(command(*line, "--json").stdout)
    assert plan[what] == count
    assert plan["read_bytes"] > 0
    assert plan["memory_bytes"] > 0
    assert plan["seconds"] > 0


def test_a_dry_run_of_a_training(folder: Path, tmp_path: Path) -> None:
    said = command(*runs(folder)["steps"], "-o", tmp_path / "out", "--dry-run")
    assert "would run: 1 trainings" in said.stdout
    assert not (tmp_path / "out").exists()


def test_bad_input_is_found_in_a_dry_run_too(folder: Path, tmp_path: Path) -> None:
    line = ("drop-study", folder / "ft", folder / "base", "--rates", "2", "-o", tmp_path / "out")
    assert command(*line, "--dry-run").exit_code == 2


def test_options_come_from_a_file_and_those_typed_win(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(f"rates: [0, 0.5, 1]\nseeds: 5\nout: {tmp_path / 'out'}\nstrategies: random\n")
    line = ("drop-study", folder / "ft", folder / "base", "--options", file, "--dry-run", "--json")
    both = 2  # Rates 0 and 1, which are the same models for every order.
    assert json.loads(command(*line).stdout)["cells"] == both + 5
    assert json.loads(command(*line, "--seeds", 1).stdout)["cells"] == both + 1


def test_an_option_of_a_file_that_does_not_exist_is_named(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("rate: 0.5\nstrategys: random\n")
    said = command("drop-study", folder / "ft", folder / "base", "--options", file, "-o", "no")
    assert isinstance(said.exception, deltalens.DeltaLensError)  # What the program makes code 2 of.
    assert "options.yaml: options that this command does not have" in str(said.exception)
    assert "strategys: unknown; did you mean strategies?" in str(said.exception)


def test_an_error_under_json_is_an_object(folder: Path, tmp_path: Path) -> None:
    said = command("drop", folder / "ft", tmp_path / "missing", "-o", tmp_path / "out", "--json")
    assert said.exit_code == 2
    error = json.loads(said.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("CheckpointError", 2)
    assert error["message"] in said.stderr


def test_an_error_names_options_as_they_are_typed(folder: Path, tmp_path: Path) -> None:
    ft, base = folder / "ft", folder / "base"
    with pytest.raises(deltalens.DeltaLensError, match="group_sizes 'x'"):
        deltalens.sweep_layers_drop(ft, base, tmp_path / "out", group_sizes="x")
    line = ("sweep", "layers-drop", folder / "ft", folder / "base", "-o", tmp_path / "out")
    assert "--group-sizes 'x'" in command(*line, "--group-sizes", "x").stderr


def test_the_module_runs_and_says_its_version() -> None:
    line = [sys.executable, "-m", "deltalens", "-V"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"deltalens {deltalens.__version__}"


def test_the_environment_has_what_a_bug_report_needs() -> None:
    found = json.loads(command("env", "--json").stdout)
    assert found["deltalens"] == deltalens.__version__
    assert {"python", "platform", "cores", "torch", "transformers"} <= found.keys()


def test_a_method_that_does_not_exist_is_a_line_with_the_nearest(folder: Path) -> None:
    said = command("train", "gmtt", folder / "model")
    assert isinstance(said.exception, deltalens.DeltaLensError)
    assert "did you mean gmt?" in str(said.exception)


def test_an_error_before_a_command_begins_is_an_object_too(folder: Path) -> None:
    line = [sys.executable, "-m", "deltalens", "drop-study", "ft", "base", "-o", "no", "--json"]
    done = subprocess.run([*line, "--jobs", "0"], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"] == "jobs 0: at least 1"
    assert done.stderr == "deltalens: jobs 0: at least 1\n"
