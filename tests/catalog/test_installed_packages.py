"""Metrics and kinds of studies that other packages bring: installed beside deltalens, and used by
the commands as a user types them, without a file of ours touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltalens import load_study
from deltalens.catalog.metrics import axis_label, better_of, known_metric, scale_of
from deltalens.catalog.studies import study_of
from deltalens.errors import DeltaLensError
from deltalens.figures import draw
from deltalens.reports import summarize
from tests.support.packages import install

STUDY = '''
from pathlib import Path

from deltalens.catalog.studies import Study

KIND = Study(
    columns=("side",), figure="coins:draw", summary="coins:Found", command="coins:throw"
)

def throw(out: Path, sides: int = 2) -> None:
    """Throw a coin for every side."""
    from deltalens.cli import console
    from deltalens.figures import draw
    from deltalens.io.records import Cell, Measurement, StudyFolder, load_study

    with console.command(debug=False):
        study = StudyFolder.open(out, "coins", {"sides": sides}, KIND.columns, fresh=True)
        try:
            cells = [Cell({"side": s}, {"luck": Measurement(s / 2)}, 0.0) for s in range(sides)]
            study.write_manifest()
            study.extend(cells)
            study.write_table([cell.setting for cell in cells])
        finally:
            study.close()
        record = load_study(out)
        console.show(record, draw(out), as_json=False, quiet=False)

class Found:
    def __init__(self, record):
        self.record = record

    def tables(self):
        return []

    def sentences(self):
        yield f"luckiest: {self.record.cells['value'].max():g}"

    def as_json(self):
        return {}

def draw(folder):
    from deltalens.figures import Drawing
    from matplotlib.figure import Figure

    return [Drawing("coins", Figure())]
'''


def package(site: Path, name: str, code: str, points: str) -> Path:
    """What pip would leave of a package of one module."""
    info = site / f"{name}-2.1.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(points)
    return site


def typed(site: Path, *line: object, code: int = 0) -> str:
    """What a command prints, in a process of its own with the packages of a folder."""
    command = [str(Path(sys.executable).parent / "deltalens"), *map(str, line)]
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    return said


def test_a_kind_of_study_is_made_told_and_drawn(tmp_path: Path) -> None:
    points = "[deltalens.studies]\ncoins = coins:KIND\n"
    site, out = package(tmp_path / "site", "coins", STUDY, points), tmp_path / "s"
    assert "coins" in typed(site, "--help")
    said = typed(site, "coins", out, "--sides", 4)
    assert "luckiest: 1.5" in said
    assert f"picture: {out / 'coins.png'}" in said
    (out / "coins.png").unlink()
    assert str(out / "coins.png") in typed(site, "plot", out)
    assert (out / "coins.png").exists()
    # Whoever has not got the package can read the records, and is told the rest.
    record = load_study(out)
    assert [*record.cells["side"]] == [0, 1, 2, 3]
    assert study_of(record.spec) is None
    with pytest.raises(DeltaLensError, match="no figure exists for a study of kind 'coins'"):
        draw(out)
    with pytest.raises(DeltaLensError, match="no summary exists for a study of kind 'coins'"):
        summarize(record)


def test_nothing_of_a_package_is_imported_before_it_is_used(tmp_path: Path) -> None:
    points = "[deltalens.studies]\ncoins = coins:KIND\n[deltalens.metrics]\nluck = coins:Luck\n"
    site = package(tmp_path / "site", "coins", "raise SystemExit('imported')", points)
    assert "A study of the package coins." in typed(site, "--help")
    assert "Redraw" in typed(site, "plot", "--help")


def test_a_broken_package_is_one_line_that_names_it(tmp_path: Path) -> None:
    points = "[deltalens.studies]\ncoins = coins:KIND\nno-study = coins:NUMBER\nmute = coins:MUTE\n"
    code = (
        "from deltalens.catalog.studies import Study\nNUMBER = 1\n"
        "MUTE = Study(columns=('side',), figure='coins:gone')\n"
    )
    site = package(tmp_path / "site", "coins", code, points)
    for name, said in (
        ("coins", "study 'coins' of coins 2.1: cannot be loaded: AttributeError: module 'coins'"),
        ("no-study", "study 'no-study' of coins 2.1: coins:NUMBER is int, not a"),
        ("mute", "study 'mute' of coins 2.1: brings no command"),
    ):
        assert said in typed(site, name, code=2)


def test_a_name_of_ours_stays_ours(tmp_path: Path) -> None:
    points = "[deltalens.studies]\nlandscape = coins:KIND\nplot = coins:KIND\n"
    site = package(tmp_path / "site", "coins", STUDY, points)
    said = typed(site, "--help")
    for name in ("landscape", "plot"):
        assert f"study '{name}' of coins 2.1: ignored, as deltalens itself has one of" in said
        assert said.count(f"\n  {name} ") == 1


def test_two_packages_with_one_name_are_both_refused(tmp_path: Path) -> None:
    points = "[deltalens.studies]\ncoins = {}:KIND\n"
    site = package(tmp_path / "site", "coins", STUDY, points.format("coins"))
    package(site, "other", STUDY, points.format("other"))
    said = typed(site, "coins", tmp_path / "s", code=2)
    assert "study 'coins': added by several packages (coins, other); uninstall all but one" in said


METRIC = """
class Luck:
    label, better, unit, per_cent = "luck of {coins}", "lower", "throws", False

class Mute:
    label = "mute"
"""


def test_the_catalog_knows_a_packages_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {name: f"extra:{name.title()}" for name in ("luck", "mute", "gone", "loss")}
    install(tmp_path, monkeypatch, group="deltalens.metrics", points=points, code=METRIC)
    assert better_of("test/luck") == "lower"
    assert axis_label("luck@100") == "luck of {coins} (throws)"
    assert scale_of("luck") == 1
    assert axis_label("loss") == "loss (nats per target token)"
    assert better_of("mute") is None
    with pytest.warns(UserWarning, match=r"metric 'gone' of extra 1\.0: cannot be loaded: Attrib"):
        assert known_metric("gone") is None
