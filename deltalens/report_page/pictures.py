"""Pictures as a page has them: SVG that stands in HTML, with the numbers of its curves."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from deltalens.io.escaping import plain
from deltalens.io.tables import Table
from deltalens.report_page.curves import Curve, as_table, curves_of, places_in
from deltalens.report_page.grids import grid_table

__all__ = ["LARGEST_SVG", "Picture", "pictures_of"]

LARGEST_SVG = 400_000
"""Bytes; a heavier picture stands in the page as pixels."""
_DROPPED = {"metadata", "style", "title"}
_LONG = re.compile(r"-?(?<!\d)\d+\.\d{3,}")
_REFERENCE = re.compile(r"(?:url\(#([^)]+)\))|(?:^#(.+)$)")


@dataclass(frozen=True)
class Picture:
    """A figure or table of a study."""

    name: str
    """Name of its file, without the ending."""
    caption: str
    svg: str = ""
    """Markup; empty of a table, and of what is too large."""
    png: str = ""
    """A `data:` address, of a picture whose SVG is too large."""
    curves: str = ""
    """JSON: name, axes and points of each curve, with their places in the SVG."""
    tables: Sequence[Table] = ()
    """Its numbers: of a table all, of a picture the points of its curves, cells and bars."""
    csv: str = ""
    """The file of a table; empty of a picture."""
    is_table: bool = False
    left_out: bool = False
    """Whether it did not fit."""

    @property
    def size(self) -> int:
        """Bytes that it takes, roughly."""
        cells = sum(len(cell) + 9 for table in self.tables for row in table.rows for cell in row)
        return len(self.svg) + len(self.png) + len(self.curves) + 2 * len(self.csv) + 2 * cells


def pictures_of(drawings: Iterable[Any], captions: Mapping[str, Any], mark: str) -> list[Picture]:
    """Turn drawings into what a page shows.

    Args:
        drawings: each a `deltalens.figures.Drawing`.
        captions: name of a figure -> its entry, with a `title`.
        mark: of the section, in front of every id in the SVG.

    Returns:
        A picture for each; of a drawn table its rows, not its picture.
    """
    found = []
    for drawing in drawings:
        entry = captions.get(drawing.name.replace("_", "-"))
        caption = entry.title if entry else drawing.name.replace("_", " ").capitalize()
        if drawing.tables:
            text = drawing.texts.get("csv", "")
            found.append(
                Picture(drawing.name, caption, tables=drawing.tables, csv=text, is_table=True)
            )
        else:
            found.append(_picture(drawing, caption, f"{mark}-{len(found)}-"))
    return found


def _picture(drawing: Any, caption: str, mark: str) -> Picture:
    import matplotlib as mpl

    curves = curves_of(drawing.figure)
    # Every point stays a vertex of its path.
    with mpl.rc_context({"path.simplify": False}):
        source = drawing.content("svg")
    grid = grid_table(drawing.figure, f"{caption}: cells" if curves else caption)
    tables = [as_table(curves, caption)] if curves else []
    tables += [grid] if grid is not None else []
    if len(source) > LARGEST_SVG:
        address = f"data:image/png;base64,{base64.b64encode(drawing.content('png')).decode()}"
        return Picture(drawing.name, caption, png=address, tables=tables)
    # What matplotlib has just written itself.
    root = ElementTree.fromstring(source)
    places = _places(root, curves)
    return Picture(drawing.name, caption, _markup(root, mark), curves=places, tables=tables)


def _places(root: ElementTree.Element, curves: Sequence[Curve]) -> str:
    groups = {group.get("id"): group for group in root.iter() if group.get("id")}
    shown = []
    for curve in curves:
        group = groups.get(curve.mark)
        places = places_in(group, len(curve.points)) if group is not None else []
        if places:
            points = [
                [round(left, 1), round(top, 1), f"{x:.5g}", f"{y:.5g}"]
                for (left, top), (x, y) in zip(places, curve.points, strict=True)
            ]
            name = ": ".join(filter(None, (curve.panel, curve.name)))
            texts = {"n": plain(name), "x": plain(curve.x_label), "y": plain(curve.y_label)}
            shown.append({**texts, "p": points})
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")) if shown else ""


def _markup(root: ElementTree.Element, mark: str) -> str:
    """SVG for HTML: without namespaces, notes and styles of its own, its ids its own."""
    _prune(root)
    used = {name for element in root.iter() for name in _references(element)}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {}
        for key, value in element.attrib.items():
            name = key.rpartition("}")[2]
            if name == "id":
                if value not in used:
                    continue
                value = mark + value
            elif name not in ("style", "transform"):
                value = _short(value, mark)
            else:
                value = _referring(value, mark)
            attributes[name] = value
        element.attrib.clear()
        element.attrib.update(attributes)
    width, height = (root.attrib.pop(side, "0").removesuffix("pt") for side in ("width", "height"))
    root.attrib.pop("version", None)
    root.attrib.setdefault("viewBox", f"0 0 {width} {height}")
    root.set("role", "presentation")
    root.set("focusable", "false")
    return ElementTree.tostring(root, encoding="unicode")


def _prune(parent: ElementTree.Element) -> None:
    for child in [*parent]:
        if child.tag.rpartition("}")[2] in _DROPPED:
            parent.remove(child)
        else:
            _prune(child)
            child.tail = None
            if child.tag.rpartition("}")[2] not in ("text", "tspan"):
                child.text = None


def _references(element: ElementTree.Element) -> list[str]:
    return [
        first or second
        for value in element.attrib.values()
        for first, second in _REFERENCE.findall(value)
    ]


def _short(value: str, mark: str) -> str:
    if value.startswith("data:"):
        return value
    value = _LONG.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
    return _referring(" ".join(value.split()), mark)


def _referring(value: str, mark: str) -> str:
    return _REFERENCE.sub(
        lambda found: f"url(#{mark}{found[1]})" if found[1] else f"#{mark}{found[2]}", value
    )
