"""The page of `deltalens report`: everything is on it, in order, for every reader."""

from __future__ import annotations

import csv
import io
import json
import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest

import deltalens
from deltalens.report_page import LARGEST
from deltalens.reports.answers import QUESTIONS
from tests.report_page.html_tree import Element, parse
from tests.support.finished_studies import KINDS

HEADINGS = ("h1", "h2", "h3", "h4", "h5")
Page = tuple[str, Element]


def ids(tree: Element) -> list[str]:
    return [each.attributes["id"] for each in tree.all() if "id" in each.attributes]


def test_every_record_has_an_article(page: Page) -> None:
    names = [next(article.all("h4")).text for article in page[1].all("article")]
    studies = {f"studies/{kind}" for kind in KINDS}
    assert {*names} == {*studies, "watched/run", "trained"}
    assert len(names) == len({*names})


def test_its_top_answers_questions_in_order(page: Page) -> None:
    (top,) = [each for each in page[1].all("section") if each.attributes.get("id") == "answers"]
    asked_of = [heading.text for heading in top.all("h3")]
    order = [*QUESTIONS.values()]
    assert asked_of == sorted(asked_of, key=order.index)
    assert {"redundant", "gradients", "methods", "sharp", "training"} <= {
        key for key, question in QUESTIONS.items() if question in asked_of
    }


def test_every_answer_has_number_doubt_and_evidence(page: Page) -> None:
    items = [
        item
        for each in page[1].all("ul")
        if each.attributes.get("class") == "answers"
        for item in each.all("li")
    ]
    assert items
    known = {*ids(page[1])}
    for item in items:
        number, _, doubt, source = [*item.all("p")]
        assert number.attributes["class"] == "number"
        assert number.text
        assert doubt.text.startswith("Uncertainty: ")
        (link,) = source.all("a")
        assert link.attributes["href"].removeprefix("#") in known


def test_every_link_leads_to_something_on_the_page(page: Page) -> None:
    links = [each.attributes["href"] for each in page[1].all("a")]
    known = {*ids(page[1])}
    assert [link for link in links if link[0] == "#" and link[1:] not in known] == []
    assert {link.partition(":")[0] for link in links if link[0] != "#"} == {"data"}


def test_no_id_is_there_twice(page: Page) -> None:
    found = ids(page[1])
    assert sorted({*found}) == sorted(found)


def test_it_names_no_address(page: Page) -> None:
    assert re.findall(r"(?:https?|ftp):|//[a-z]|@import|url\((?!#)", page[0]) == []
    for each in page[1].all():
        assert not {"srcset", "action", "formaction", "ping"} & {*each.attributes}
        assert each.attributes.get("src", "data:").startswith("data:")


def test_its_policy_lets_its_own_script_run_and_nothing_else(page: Page) -> None:
    (policy,) = [
        each.attributes["content"]
        for each in page[1].all("meta")
        if each.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    assert len([*page[1].all("script")]) == 1


def test_no_level_of_heading_is_left_out(page: Page) -> None:
    levels = [int(each.tag[1]) for each in page[1].all(*HEADINGS)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_it_has_landmarks_and_a_language(page: Page) -> None:
    for tag in ("header", "nav", "main", "footer"):
        assert len([*page[1].all(tag)]) == 1
    assert next(page[1].all("html")).attributes["lang"] == "en"
    assert next(page[1].all("title")).text


def test_tables_have_captions_and_scopes(page: Page) -> None:
    tables = [*page[1].all("table")]
    assert tables
    for table in tables:
        assert next(table.all("caption")).text
        assert all(cell.attributes.get("scope") in ("col", "row") for cell in table.all("th"))


def test_pictures_say_what_they_are(page: Page) -> None:
    pictures = [each for each in page[1].all("div") if "card" in each.attributes.get("class", "")]
    assert pictures
    for picture in pictures:
        (svg,) = picture.all("svg")
        assert svg.attributes["role"] == "presentation"
        assert picture.attributes["role"] in ("img", "group")
        assert picture.attributes["aria-label"]


def test_every_picture_has_its_numbers(page: Page) -> None:
    for figure in page[1].all("figure"):
        folds, links = [*figure.all("details")], [*figure.all("a")]
        assert folds or links or [*figure.all("table")]


def curves_of(tree: Element) -> list[dict[str, list[list[str]]]]:
    return [
        curve
        for figure in tree.all("figure")
        if "data-curves" in figure.attributes
        for curve in json.loads(figure.attributes["data-curves"])
    ]


def test_values_of_curves_lie_where_the_picture_has_them(page: Page) -> None:
    curves = [curve for curve in curves_of(page[1]) if len(curve["p"]) > 2]
    assert curves
    for curve in curves:
        lefts = [float(point[0]) for point in curve["p"]]
        xs = [float(point[2]) for point in curve["p"]]
        assert [*map(lefts.index, sorted(lefts))] == [*map(xs.index, sorted(xs))]


def test_the_curve_of_a_drop_study_has_the_studys_values(made: Path, page: Page) -> None:
    study = deltalens.load_study(made / "studies" / "drop-study")
    loss = study.cells[study.cells["metric"] == "kl"]
    own = loss[loss["strategy"] == "trivial"].groupby("rate")["value"].mean()
    values = {f"{rate:.5g}": f"{value:.5g}" for rate, value in own.items()}
    drawn = [
        {point[2]: point[3] for point in curve["p"]}
        for curve in curves_of(page[1])
        if curve["n"] == "trivial"  # type: ignore[comparison-overlap]
    ]
    assert values in drawn


def test_downloads_are_csv_that_can_be_read(page: Page) -> None:
    links = [each for each in page[1].all("a") if "download" in each.attributes]
    assert links
    for link in links:
        head, _, body = link.attributes["href"].partition(",")
        assert head == "data:text/csv;charset=utf-8"
        assert link.attributes["download"].endswith(".csv")
        rows = [*csv.reader(io.StringIO(unquote(body)))]
        assert len(rows) > 1


def test_it_shows_every_cell_of_a_study(made: Path, page: Page) -> None:
    study = deltalens.load_study(made / "studies" / "drop-study")
    (link,) = [
        each
        for each in page[1].all("a")
        if each.attributes.get("download") == "studies-drop-study-cells.csv"
    ]
    rows = [*csv.reader(io.StringIO(unquote(link.attributes["href"].partition(",")[2])))]
    assert rows[0] == list(study.cells.columns)
    assert len(rows) - 1 == len(study.cells)


def test_it_says_how_to_repeat_each(page: Page) -> None:
    commands = [each.text for each in page[1].all("pre")]
    assert len(commands) == len(KINDS) + 2
    assert all(each.startswith(("deltalens ", "with deltalens.")) for each in commands)


def test_it_shows_fingerprints_and_versions(page: Page) -> None:
    text = page[1].text
    assert "d028c46bc056be02" in text
    assert "torch" in text


def test_it_is_small(page: Page) -> None:
    assert len(page[0].encode()) < LARGEST / 2


def test_the_same_records_make_the_same_bytes(made: Path, page: Page, tmp_path: Path) -> None:
    deltalens.report(made, out=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page[0]


def test_pictures_that_do_not_fit_are_left_out_and_said_to_be(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltalens.report_page.page.LARGEST", 20_000)
    deltalens.report(made / "studies" / "drop-study", out=tmp_path / "small.html")
    text = (tmp_path / "small.html").read_text(encoding="utf-8")
    assert "Left out, as the page would be too large" in text
    assert [*parse(text).all("svg")] == []


def test_a_picture_of_too_many_strokes_stands_as_pixels(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltalens.report_page.pictures.LARGEST_SVG", 100)
    deltalens.report(made / "studies" / "drop-study", out=tmp_path / "pixels.html")
    (image,) = parse((tmp_path / "pixels.html").read_text(encoding="utf-8")).all("img")
    assert image.attributes["src"].startswith("data:image/png;base64,")
    assert image.attributes["alt"]


def test_studies_of_one_kind_stand_side_by_side(records: Path, tmp_path: Path) -> None:
    two = [records / "studies" / "layer-sweep", records / "studies" / "layer-sweep"]
    other = two[1].with_name("again")
    two[0].joinpath("study.json")
    other.mkdir()
    for name in ("study.json", "cells.jsonl", "cells.csv"):
        if (two[0] / name).exists():
            (other / name).write_bytes((two[0] / name).read_bytes())
    deltalens.report([two[0], other], out=tmp_path / "two.html")
    tree = parse((tmp_path / "two.html").read_text(encoding="utf-8"))
    (side,) = [each for each in tree.all("div") if each.attributes.get("class") == "side"]
    assert [next(each.all("h4")).text for each in side.all("article")] == ["layer-sweep", "again"]
