"""The gallery: every figure is on the page, drawn from the records that lie beside it."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from deltalens.figures import FIGURES, Drawing
from deltalens.figures.floors import FLOOR
from deltalens.io.records import load_study
from tests.support.shown_commands import docs_module

ROOT = Path(__file__).parents[2]
PICTURE, ALL = 400_000, 6_000_000
"""Bytes that a picture may have, and all files of the gallery."""


GALLERY = docs_module("build_gallery")
ENTRIES = [entry for _, held in GALLERY.entries() for entry in held]
DRAWN = [entry for entry in ENTRIES if entry.name != "gradients" and entry.said.get("drawn", True)]
"""A probe's run is no text; tests/cli/test_monitor.py draws one."""


@cache
def drawn(index: int) -> list[Drawing]:
    made: list[Drawing] = DRAWN[index].drawn()
    return made


def test_every_figure_is_on_the_page_once() -> None:
    for models in ("toy", "real"):
        own = [entry for entry in ENTRIES if entry.models == models]
        shown = Counter(entry.name for entry in own)
        shown += Counter(twin for entry in own for twin in entry.said.get("twins", ()))
        assert set(shown.values()) == {1}
        if models == "toy":
            assert set(shown) == set(FIGURES)


def test_twins_would_be_drawn_alike() -> None:
    for entry in ENTRIES:
        for twin in entry.said.get("twins", ()):
            assert (FIGURES[twin].same_as or twin) == (FIGURES[entry.name].same_as or entry.name)


@pytest.mark.parametrize("index", range(len(DRAWN)), ids=[f"{e.models}-{e.name}" for e in DRAWN])
def test_a_figure_is_drawn_from_its_records_as_it_was(index: int) -> None:
    entry, made = DRAWN[index], drawn(index)
    assert made
    for each in made:
        if "md" in each.texts:
            continue
        visible = [axis for axis in each.figure.axes if axis.get_visible()]
        for axis in visible if entry.source.studies else ():
            assert axis.get_ylabel() or axis.get_title() or axis.get_xlabel(), entry.name
        assert visible or not entry.source.studies
    for file in entry.files(made):
        assert file.is_file(), f"{file}: run docs/build_gallery.py"
        assert file.stat().st_size < PICTURE


def test_what_is_not_drawn_is_under_the_floor() -> None:
    undrawn = [entry for entry in ENTRIES if not entry.said.get("drawn", True)]
    assert {entry.name for entry in undrawn} == {"numbers", "harness"}
    for entry in undrawn:
        (study,) = entry.source.studies
        cells = load_study(study).cells
        shares = cells[cells["metric"].str.endswith("exact_match")]
        assert not shares.empty
        assert shares["value"].max() < FLOOR


@pytest.mark.parametrize(
    ("models", "name", "column", "levels"),
    [
        ("real", "gmt-fig3", "strategy", 2),  # the base and the fine-tune
        ("real", "gmt-fig2", "method", 0),
        ("toy", "gmt-fig3", "strategy", 2),
        ("toy", "gmt-fig2", "method", 0),
        ("toy", "gmt-data", "method", 0),
        ("toy", "mft-fig2", "method", 0),
        ("toy", "mft-fig3", "method", 0),
        ("toy", "mft-fig4", "method", 0),
        ("toy", "mft-fig5", "method", 0),
        ("toy", "mft-fig7", "method", 0),
        ("toy", "mft-fig8", "method", 0),
        ("toy", "mft-fig9", "method", 0),
        ("toy", "speft-fig2", "method", 0),
    ],
)
def test_a_figure_has_a_line_for_each_method(
    models: str, name: str, column: str, levels: int
) -> None:
    (index,) = [n for n, e in enumerate(DRAWN) if (e.models, e.name) == (models, name)]
    held = {
        str(value)
        for study in DRAWN[index].source.studies
        for value in load_study(study).cells[column]
    }
    labels = {
        str(line.get_label())
        for drawing in drawn(index)
        for axis in drawing.figure.axes
        for line in axis.get_lines()
        if not str(line.get_label()).startswith("_")
    }
    assert len(labels) == len(held) + levels, (labels, held)


def test_the_page_is_what_the_records_say() -> None:
    said = GALLERY.page()
    assert said == (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for entry in ENTRIES:
        assert entry.title in said
        for key in ("paper", "here"):
            if key in entry.said:
                assert entry.said[key].count(".") >= 1, f"{entry.name}: {key} is no sentence"
    assert all("here" in entry.said or not entry.source.studies for entry in ENTRIES)
    assert all(
        "paper" in entry.said
        for entry in ENTRIES
        if FIGURES.get(entry.name, None) and FIGURES[entry.name].paper and entry.models == "toy"
    )


def test_it_is_small_and_names_no_machine() -> None:
    files = [file for file in GALLERY.GALLERY.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < ALL
    assert {file.suffix for file in files} <= {".svg", ".json", ".jsonl", ".yaml", ".md"}
    for file in files:
        if file.suffix in (".json", ".jsonl"):
            assert '"/' not in file.read_text(encoding="utf-8"), file
