"""What the front door returns shows itself: short in a console, whole in a notebook, and obeys
nothing of what names of files and methods say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import deltalens

LONGEST = 400
HOSTILE = "<script>alert(1)</script>\x1b[31m"


def results(demo: Path, out: Path) -> dict[str, Any]:
    ft, base = demo / "ft", demo / "base"
    return {
        "study": deltalens.load_study(demo / "study"),
        "run": deltalens.load_run(demo / "run"),
        "inspection": deltalens.inspect(ft, base),
        "drop": deltalens.drop(ft, base, out / "dropped"),
        "checkpoint": deltalens.open_checkpoint(ft),
        "pairing": deltalens.pair(ft, base),
        "training": deltalens.train(
            "sft", base, demo / "train.jsonl", out / "sft", steps=1, train_limit=8, max_length=64
        ),
    }


@pytest.fixture(scope="module")
def shown(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results(demo, tmp_path_factory.mktemp("results"))


def test_each_is_short_in_a_console(shown: dict[str, Any]) -> None:
    for name, result in shown.items():
        assert 0 < len(repr(result)) < LONGEST, name
        assert "object at 0x" not in repr(result), name


@pytest.mark.parametrize("name", ["study", "run", "inspection", "training", "drop"])
def test_each_shows_its_sentences_and_tables_in_a_notebook(
    shown: dict[str, Any], name: str
) -> None:
    import html

    result = shown[name]
    page = result._repr_html_()
    for sentence in result.summary().splitlines():
        assert html.escape(sentence) in page
    assert page.count("<table") == len(getattr(result, "tables", []))


def test_tables_have_titles_and_rows(shown: dict[str, Any]) -> None:
    tables = shown["study"].tables
    assert [table.attrs["title"] for table in tables] == ["exact_match", "loss", "perplexity"]
    assert all(len(table) == 3 for table in tables)


def test_a_figure_is_drawn_and_nothing_written(shown: dict[str, Any], demo: Path) -> None:
    before = sorted(os.listdir(demo / "study"))
    figure = shown["study"].figure()
    assert figure.axes[0].get_xlabel()
    assert [*shown["study"].figures()] == ["gmt_fig3"]
    assert sorted(os.listdir(demo / "study")) == before
    with pytest.raises(deltalens.DeltaLensError, match=r"no picture 'other'; there are: gmt_fig3"):
        shown["study"].figure("other")


def test_it_knows_its_folder(shown: dict[str, Any], demo: Path) -> None:
    assert shown["study"].folder == demo / "study"
    assert shown["run"].folder == demo / "run"
    with pytest.raises(deltalens.DeltaLensError, match="without a folder has no picture"):
        shown["inspection"].figure()


def test_a_hostile_name_is_shown_and_not_obeyed(demo: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(demo / "study", tmp_path / HOSTILE.replace("/", "_"))
    study = deltalens.load_study(folder)
    assert "<script>" not in study._repr_html_()
    assert "\x1b" not in study._repr_html_() + repr(study)
    long = shutil.copytree(demo / "study", tmp_path / ("x" * 200) / ("y" * 200))
    assert len(repr(deltalens.load_study(long))) < LONGEST
