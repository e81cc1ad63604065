"""`deltalens figures` and `deltalens figure`: what is listed, what is written, what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from click.testing import Result
from typer.testing import CliRunner

import deltalens
from deltalens.cli.main import app
from deltalens.errors import DeltaLensError, RecordError
from deltalens.figures import FIGURES, draw_figure
from deltalens.io.checksum import sealed
from tests.support.gmt_studies import EXACT, write_efficiency, write_sweep
from tests.support.mft_studies import COMPARED, RATIOS, write_study


def typed(*words: str) -> Result:
    return CliRunner().invoke(app, [*words])


def test_all_are_listed_with_what_they_need() -> None:
    said = typed("figures")
    assert said.exit_code == 0, said.output
    for paper, figures, tables in (("GMT", 3, 4), ("MFT", 10, 6), ("SPEFT", 2, 12)):
        for kind, count in (("Figure", figures), ("Table", tables)):
            for number in range(1, count + 1):
                assert re.search(
                    rf"^{paper.lower()}-\w+ +{paper}, {kind} {number}: ", said.output, re.M
                )
    assert said.output.count("(the body of the paper's table is lost)") == 6
    listed = json.loads(typed("figures", "--json").output)["figures"]
    assert [row["figure"] for row in listed] == [*FIGURES]
    assert next(row for row in listed if row["figure"] == "gmt-fig3")["study"] == "drop-study"


@pytest.mark.parametrize("command", sorted({e.command for e in FIGURES.values() if e.command}))
def test_the_command_that_makes_a_study_can_be_typed(command: str) -> None:
    """Its words are read; what they stand for is not looked at."""
    program, *words = re.sub(r"\bN\b", "4", command).split()
    assert program == "deltalens"
    group: Any = typer.main.get_command(app)
    context: Any = group.make_context("deltalens", words, resilient_parsing=True)
    while hasattr(group, "get_command"):
        name, *words = words
        group = group.get_command(context, name)
        assert group is not None, name
    group.make_context(name, words, parent=context)


@pytest.mark.parametrize(
    ("ending", "begins"),
    [
        ("png", b"\x89PNG"),
        ("svg", b"<?xml"),
        ("pdf", b"%PDF"),
        ("md", b"# GMT, Table 1"),
        ("csv", b"source,"),
        ("tex", b"% \\usepackage"),
    ],
)
def test_the_ending_says_the_format(tmp_path: Path, ending: str, begins: bytes) -> None:
    sweep = write_sweep(tmp_path / "s", EXACT)
    out = tmp_path / f"table.{ending}"
    assert "One-off Drop" not in typed("figure", "gmt-tab1", str(sweep), "-o", str(out)).output
    said = typed("figure", "gmt-tab1", str(sweep), "-o", str(out), "--paper")
    assert said.exit_code == 0, said.output
    assert out.read_bytes().startswith(begins)
    assert f"drawn: {out}" in said.output
    assert "One-off Drop" in said.output  # of the paper's rows, on the terminal
    assert not [*sweep.glob("gmt_*")]
    first = out.read_bytes()
    draw_figure("gmt-tab1", sweep, out, paper=True)
    assert out.read_bytes() == first


def test_a_pdf_has_its_fonts_in_it(tmp_path: Path) -> None:
    (file,) = draw_figure("mft-fig1", (), tmp_path / "a.pdf")
    assert b"/Type3" not in file.read_bytes()
    assert b"/FontFile2" in file.read_bytes()


def test_type_is_larger_on_slides(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS)
    widths = {}
    for medium in ("paper", "slides"):
        drawn = deltalens.draw_figure("mft-fig4", study, out=tmp_path / "a.png", medium=medium)
        widths[medium] = drawn.figure().get_figwidth()
    assert widths["paper"] == pytest.approx(6.8)
    assert widths["slides"] < 0.8 * widths["paper"]
    again = deltalens.draw_figure("mft-fig4", study, out=tmp_path / "a.png")
    assert again.figure().get_figwidth() == pytest.approx(6.8)
    with pytest.raises(DeltaLensError, match="medium 'poster': choose from paper, slides"):
        deltalens.draw_figure("mft-fig4", study, medium="poster")


def test_several_domains_and_a_mixture_are_typed(tmp_path: Path) -> None:
    folders = [
        str(write_study(tmp_path / name, "comparison", COMPARED, trained_on=f"{name}_train"))
        for name in ("maths", "code", "mixed")
    ]
    out = tmp_path / "t.md"
    said = typed(
        "figure", "mft-tab1", *folders[:2], "--mixed", folders[2], "-o", str(out), "--json"
    )
    assert said.exit_code == 0, said.output
    tables = json.loads(said.output)["tables"]
    assert [table["title"] for table in tables][:2] == [
        "This study: domain-specific FFT",
        "This study: mixed-domain FFT",
    ]
    assert "code: trained on code_train" in out.read_text()


def test_what_is_needed_is_said_with_the_command_that_makes_it(tmp_path: Path) -> None:
    costs = write_efficiency(tmp_path / "costs", {"sft": [1.0]})
    empty = write_sweep(tmp_path / "empty", {})
    (tmp_path / "nothing").mkdir()
    drop = "made by `deltalens drop-study FT BASE --data TEST -o STUDY`"
    with pytest.raises(RecordError, match=r"no drop-study with .*kind efficiency") as wrong:
        draw_figure("gmt-fig3", costs)
    assert drop in str(wrong.value)
    with pytest.raises(RecordError, match="no mask-ratio-sweep with finished cells; gmt-tab1"):
        draw_figure("gmt-tab1", empty)
    with pytest.raises(RecordError, match=f"no study; gmt-fig3 needs a drop-study, {drop}"):
        draw_figure("gmt-fig3", tmp_path / "nothing")
    with pytest.raises(DeltaLensError, match=f"name a folder .* a drop-study, {drop}"):
        draw_figure("gmt-fig3")
    with pytest.raises(DeltaLensError, match="drawn from no study; name none"):
        draw_figure("gmt-fig1", costs)
    said = typed("figure", "gmt-fig33", str(costs))
    assert said.exit_code == 2
    assert "did you mean gmt-fig3" in said.output


def test_an_ending_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS)
    with pytest.raises(DeltaLensError, match=r"tex: mft_fig4 is written as png, svg, pdf"):
        draw_figure("mft-fig4", study, tmp_path / "a.tex")
    with pytest.raises(DeltaLensError, match="a file without an ending"):
        draw_figure("mft-fig4", study, tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


def test_missing_columns_are_named(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS)
    _edit(study, columns=["method", "seed"])
    with pytest.raises(RecordError, match=r"columns is \['method', 'seed'\]; expected .*mask_r"):
        draw_figure("mft-fig4", study)


def test_studies_of_versions_that_measured_differently_share_no_figure(tmp_path: Path) -> None:
    one, other = (
        write_study(tmp_path / name, "mask-ratio-sweep", RATIOS) for name in ("one", "other")
    )
    draw_figure("mft-fig4", [one, other])
    _edit(other, identity=2, deltalens="0.0.9")
    with pytest.raises(RecordError, match=r"by deltalens 0\.0\.9, and .*one by .*draw them apart"):
        draw_figure("mft-fig4", [one, other])
    draw_figure("mft-fig4", other)


def _edit(study: Path, **fields: Any) -> None:
    manifest = json.loads((study / "study.json").read_bytes())
    manifest.pop("checksum")
    (study / "study.json").write_text(json.dumps(sealed({**manifest, **fields})))


def test_figures_need_no_torch(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS)
    program = f"""
import sys
sys.modules["torch"] = None  # from here on, importing it fails
import deltalens
deltalens.list_figures()
print(deltalens.draw_figure("mft-fig4", {str(study)!r}, out={str(tmp_path / "a.svg")!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "<Drawn mft-fig4: a.svg>"
