"""Names from files reach terminals, tables and pictures escaped: raw bytes are looked at."""

from __future__ import annotations

import ast
import csv
import json
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner, Result

from deltalens import load_study
from deltalens.cli import main
from deltalens.cli.main import app
from deltalens.figures import Drawing, style
from tests.architecture.import_graph import ROOT
from tests.support.checkpoint_files import SINGLE, save

pytestmark = pytest.mark.bad_input

NASTY = (
    "\x1b]52;c;Zm9v\x07",
    "\x9b31mred",
    "[link=http://evil.example]here[/link][bold]",
    "[/]",
    "$\\frac{1}{0}$ $unbalanced",
    "two\nlines\rover",
    "\u202egnp.exe\u2066\u200b",
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "<script>alert(1)</script>|`x`",
    "\x08\x08\x7f:smile:",
)
FORBIDDEN = [bytes([code]) for code in (*range(10), *range(11, 32), 127)] + [
    mark.encode() for mark in "\u0080\u009b\u200b\u202e\u2066\u2028"
]


def pair_of(folder: Path) -> tuple[Path, Path]:
    """A pair whose tensors are called so, in folders that are, too."""
    draws = torch.Generator().manual_seed(0)
    base = {f"{name}.weight": torch.randn(8, 4, generator=draws) for name in NASTY}
    ft = {name: tensor + 0.01 * tensor.abs() for name, tensor in base.items()}
    inside = folder / "f\x1b]52;c;Zm9v\x07[bold]\u202e$x"
    return save(inside / "ft\nx", ft), save(inside / "base", base)


def run(*line: object) -> Result:
    return CliRunner().invoke(app, [str(part) for part in line])


def is_clean(text: bytes) -> None:
    assert [mark for mark in FORBIDDEN if mark in text] == []
    assert b"\\x1b]52" in text


def test_an_inspection_shows_every_name_and_obeys_none(tmp_path: Path) -> None:
    ft, base = pair_of(tmp_path)
    out = tmp_path / "o\x1b]52;c;Zm9v\x07"
    result = run("inspect", ft, base, "-o", out, "--tensors")
    assert result.exit_code == 0, result.output
    is_clean(result.stdout_bytes)
    shown = result.stdout.replace("\n", "")
    for part in ("[bold]", "[/]", "$unbalanced", r"\u202e", r"\nlines", ":smile:"):
        assert part in shown, part
    is_clean((out / "cells.csv").read_bytes())
    cells = {cell for row in csv.reader((out / "cells.csv").open(newline="")) for cell in row}
    assert not [cell for cell in cells if cell.startswith(("=", "@", "\t", "\r"))]
    assert {row for row in load_study(out).cells["name"]} >= {f"{name}.weight" for name in NASTY}
    for picture in out.glob("*.svg"):
        ElementTree.parse(picture)
        assert not [mark for mark in FORBIDDEN if mark in picture.read_bytes()]
    found = json.loads(run("inspect", ft, base, "--json").stdout)
    assert f"{NASTY[0]}.weight" in {group["name"] for group in found["groups"]}


@pytest.mark.parametrize("command", ["inspect", "drop", "drop-study", "landscape", "train sft"])
def test_errors_show_names_and_obey_none(tmp_path: Path, command: str) -> None:
    ft, base = pair_of(tmp_path)
    (base / SINGLE).write_bytes(b"\xff" * 20)
    (ft / SINGLE).write_bytes(b"\xff" * 20)
    both = [ft] if command == "train sft" else [ft, base]
    more = ["--train-data", tmp_path / "d\x1b]52;c;Zm9v\x07.jsonl"] if len(both) == 1 else []
    more += [] if command == "inspect" else ["-o", tmp_path / "out"]
    more += ["--metrics", "kl"] if command == "landscape" else []
    result = run(*command.split(), *both, *more)
    assert result.exit_code == 2
    is_clean(result.stderr_bytes)
    assert result.stderr.startswith("deltalens: ")


def test_faults_of_a_pair_show_names_and_obey_none(tmp_path: Path) -> None:
    ft, base = pair_of(tmp_path)
    shifted = {f"{name}.bias": torch.zeros(2) for name in NASTY}
    save(base, shifted)
    result = run("inspect", ft, base, "--strict")
    assert result.exit_code == 2
    is_clean(result.stderr_bytes)


def test_a_drop_shows_names_and_obeys_none(tmp_path: Path) -> None:
    ft, base = pair_of(tmp_path)
    result = run("drop", ft, base, "-o", tmp_path / "out\x1b]52;c;Zm9v\x07")
    assert result.exit_code == 0, result.output
    is_clean(result.stdout_bytes)


def test_a_picture_shows_names_and_computes_none(tmp_path: Path) -> None:
    with style.styled():
        figure = style.new_figure(4.8, width=6.4)
        axes = figure.subplots()
        for name in NASTY:
            axes.plot([1, 2], [1, 2], label=name)
            axes.annotate(name, (1, 1))
        axes.set(title=NASTY[4], xlabel=NASTY[0], xscale="log")
        axes.set_yticks(range(len(NASTY)), NASTY)
        axes.legend()
        _, picture = Drawing("nasty", figure).save(tmp_path)
    svg = picture.read_bytes()
    is_clean(svg)
    shown = [text for text in ElementTree.parse(picture).getroot().itertext()]
    assert sum("$unbalanced" in text for text in shown) == 4
    assert not any("\\$" in text for text in shown)


def test_commands_print_in_one_place() -> None:
    """`console.say` and `console.console`: nothing is printed around them."""
    around = []
    for file in [*(ROOT / "cli").glob("*.py"), *(ROOT / "deltalens").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
            if name in ("print", "typer.echo", "typer.secho", "click.echo", "rich.print"):
                around.append((file.name, name))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Console":
                safe = {word.arg for word in node.keywords} >= {"markup", "emoji"}
                around += (
                    [] if safe or "stderr=True" in ast.unparse(node) else [(file.name, "Console")]
                )
            if name in ("sys.stdout.write", "sys.stderr.write", "traceback.print_exc"):
                around.append((file.name, name))
    assert around == [("console.py", "typer.echo")]


@pytest.mark.parametrize("line", [["inspect", "a", "b", "{}"], ["plot", "--{}"], ["{}"], ["drop"]])
def test_a_refused_command_line_shows_names_and_obeys_none(line: list[str]) -> None:
    """As a shell's pattern brings them."""
    result = run(*(part.format(NASTY[0] + "\u202e\n") for part in line))
    assert result.exit_code == 2
    assert [mark for mark in FORBIDDEN if mark in result.stderr_bytes] == []


def test_a_trace_shows_names_and_obeys_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ValueError(NASTY[0])

    monkeypatch.setattr(main, "app", broken)
    monkeypatch.setattr(main, "check_streams", lambda: None)
    with pytest.raises(SystemExit):
        main.main()
    said = capsys.readouterr().err
    is_clean(said.encode())
    assert "ValueError" in said


def test_names_that_are_escaped_alike_keep_their_own_numbers(tmp_path: Path) -> None:
    names = ("\x1b", r"\x1b", "=1", "'=1")
    draws = torch.Generator().manual_seed(0)
    base = {f"{name}.weight": torch.randn(8, 4, generator=draws) for name in names}
    ft = {name: one + (place + 1) * one.abs() for place, (name, one) in enumerate(base.items())}
    out = tmp_path / "out"
    run("inspect", save(tmp_path / "ft", ft), save(tmp_path / "base", base), "-o", out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cells = load_study(out).cells
    own = cells[(cells["level"] == "tensor") & (cells["metric"] == "relative_norm")]
    norms = dict(zip(own["name"], own["value"], strict=True))
    for place, name in enumerate(names):
        assert norms[f"{name}.weight"] == pytest.approx(place + 1)
    rows = [row for row in csv.reader((out / "cells.csv").open(newline=""))][1:]
    listed = [row[3] for row in rows if row[0] == "tensor" and row[2] == "relative_norm"]
    assert sorted(map(float, listed)) == pytest.approx([1, 2, 3, 4])
