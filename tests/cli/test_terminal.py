"""Every table that a command prints, on terminals of 80 and of 60 columns: no digit is cut."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import deltalens
from tests.architecture.commands import generated_commands
from tests.support.runs import succeeds
from tests.support.terminal import on_terminal
from tests.support.training_folders import write_model, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, rows, and a run."""
    from transformers import AutoModelForCausalLM

    made = tmp_path_factory.mktemp("terminal")
    write_rows(made / "rows.jsonl")
    write_model(made / "base")
    write_model(made / "ft")
    model = AutoModelForCausalLM.from_pretrained(made / "ft")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with deltalens.GradientProbe(model, made / "run", every=1, updates=True):
        for _ in range(2):
            ids = torch.arange(1, 9).unsqueeze(0)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(made / "ft")
    return made


def lines(made: Path) -> dict[str, list[object]]:
    """A command for every table."""
    ft, base, rows = made / "ft", made / "base", made / "rows.jsonl"
    data, trained = ["--data", rows, "--limit", 8], ["--train-data", rows, "--train-limit", 8]
    training = [ft, *trained, "--eval-data", rows, "--steps", 1, "--seeds", 1]
    given: dict[str, list[object]] = {
        "inspect": [ft, base, "--tensors"],
        "drop-study": [ft, base, *data, "--rates", "0.5", "--seeds", 2],
        "landscape": [ft, base, *data, "--grid", 3],
        "evaluate": [ft, base, *data],
        "salience": [base, *data, "--against", ft, "--batch-size", 2],
        "efficiency": ["gmt", ft, *trained, "--repeats", 1, "--block-steps", 1],
        "compare": ["mft,random-mask-weights", *training],
        "sweep layers-drop": [ft, base, *data, "--group-sizes", 1],
        "sweep layers": ["mft", *training, "--group-sizes", 1],
        "sweep mask-ratio": ["gmt,random-mask,hft", *training, "--mask-ratios", "0.5"],
        "sweep data-ratio": ["mft,sft", *training, "--data-ratios", "0.5"],
        "sweep density": ["sft,lora,pissa", *training, "--ranks", "1"],
        "sweep masks": ["speft:examples=8", *training, "--refresh-every", 1],
    }
    found = {
        name: [*name.split(), *line, "-o", made / "out" / name.replace(" ", "-")]
        for name, line in given.items()
    }
    table = ["mft-tab1", made / "out" / "compare", "-o", made / "table.md"]
    return {**found, "monitor": ["monitor", made / "run"], "figure": ["figure", *table]}


@pytest.fixture(scope="module")
def finished(folder: Path) -> dict[str, list[object]]:
    """The same, made once: afterwards a command only prints."""
    found = lines(folder)
    for name, line in found.items():
        succeeds(*line, *(["-q"] if name != "figure" else []))
    return found


@pytest.mark.parametrize("width", [80, 60])
def test_no_digit_is_cut(finished: dict[str, list[object]], folder: Path, width: int) -> None:
    printed = on_terminal(width, folder / "tables.json", list(finished.values()))
    tables = json.loads((folder / "tables.json").read_text())
    assert len(tables) >= len(finished)
    assert "…" not in printed
    shown = [re.split(r"  +", line.strip()) for line in printed.splitlines()]
    cells = [cell for row in shown for cell in row]
    for table in tables:
        for row in table["rows"]:
            for cell in row[1:]:
                assert cell in cells, (table["title"], table["columns"], row)
    rules = [line for line in printed.splitlines() if "──" in line]
    assert len(rules) >= len(tables)
    assert max(map(len, rules)) <= width


def test_a_pipe_has_120_columns(finished: dict[str, list[object]]) -> None:
    printed = succeeds(*finished["inspect"])
    rules = [len(line) for line in printed.splitlines() if "──" in line]
    assert 80 < max(rules) <= 120


def test_every_command_that_prints_a_table_is_tried(finished: dict[str, list[object]]) -> None:
    """Of those left out: `drop`, `train`, `methods`, `figures`, `env` and `report` print lines,
    `plot` names of files, and the demos and `reproduce` what the other commands print."""
    named = {" ".join(words) for words in generated_commands() if words[0] != "train"}
    silent = {"drop", "plot", "methods", "figures", "env", "report", "demo", "reproduce"}
    assert {*finished} == named - silent
