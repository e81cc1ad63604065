"""Makes docs/gallery.md, its pictures and its records.

    deltalens demo --all -o toy/
    deltalens reproduce real-small ... -o real/
    python docs/build_gallery.py --toy toy/ --real real/

copies what the figures are drawn from to docs/gallery/records, draws them from there, and writes
the page around the sentences of docs/gallery/sentences.yaml. Without options, it draws and writes
from the records that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deltalens.api.reproducing import plans_of
from deltalens.figures import Drawing, drawings, figure_entry
from deltalens.figures import draw_for as draw_named
from deltalens.io.checksum import CHECKSUM, sealed
from deltalens.recipes import Plan

__all__ = ["Entry", "Source", "entries", "page", "sources"]

HERE = Path(__file__).parent
GALLERY = HERE / "gallery"
RECORDS = GALLERY / "records"
_KEPT = ("study.json", "cells.jsonl", "train.json", "metrics.jsonl")
"""Of a study's or training's folder; a figure is drawn from nothing else."""
_RUNS = ("gradients",)
"""Drawn from a probe's run, which is no text: these pictures are made where the run is."""
_BEFORE = ("Beside the paper", "The paper")
"""How the blocks of a table begin that are not the study's own."""


@dataclass(frozen=True)
class Source:
    """What a figure is drawn from."""

    studies: tuple[Path, ...]
    mixed: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A figure on the page."""

    name: str
    """Of the figure; or of a step, whose own pictures are shown."""
    models: str
    """`toy` or `real`."""
    said: Mapping[str, Any]
    """Its sentences, and whose twins are drawn from the same studies."""
    source: Source

    @property
    def title(self) -> str:
        """Above it."""
        title = str(self.said.get("title") or figure_entry(self.name).title)
        return title[0].upper() + title[1:]

    def drawn(self) -> list[Drawing]:
        """Draw it from the records.

        Returns:
            The drawings; none where the sentences say it all (`drawn: false`).
        """
        if not self.said.get("drawn", True):
            return []
        if "step" in self.said:
            return drawings(self.source.studies[0])
        return draw_named(self.name, self.source.studies, mixed=self.source.mixed)

    def files(self, drawn: Sequence[Drawing]) -> list[Path]:
        """Where its pictures are; a table has none.

        Args:
            drawn: its drawings.

        Returns:
            A file for each drawing.
        """
        folder = GALLERY / self.models / self.name.replace("/", "-")
        return [folder / f"{each.name}.svg" for each in drawn if "md" not in each.texts]


def sources(models: str, out: Path) -> dict[str, Source]:
    """Find what each figure is drawn from.

    Args:
        models: `toy` or `real`.
        out: the folder that recipes wrote; or the gallery's copy of it.

    Returns:
        A figure's name -> its studies. For the toy, figures of the papers come from their own
        recipes, and the others from `real-small`.
    """
    demo = models == "toy"
    plans: list[Plan] = (
        plans_of((), out, all=True, demo=True)
        if demo
        else plans_of(["real-small"], out, base="SmolLM2-135M-Instruct")
    )
    found: dict[str, Source] = {}
    for each in sorted(plans, key=lambda one: not one.recipe.paper):
        for figure in each.figures:
            found.setdefault(figure.name, Source(figure.studies, figure.mixed))
        for step in each.steps:
            found.setdefault(step.name, Source((step.folder,)))
    return found


def entries(
    out: Mapping[str, Path] | None = None,
) -> Iterator[tuple[Mapping[str, Any], list[Entry]]]:
    """Read the page's sections.

    Args:
        out: `toy` and `real` -> the folder of the studies; by default the gallery's records.

    Yields:
        A section's heading and text, and its figures.
    """
    sections = yaml.safe_load((GALLERY / "sentences.yaml").read_text(encoding="utf-8"))
    found = {
        models: sources(models, (out or {}).get(models, RECORDS / models))
        for models in ("toy", "real")
    }
    for section in sections:
        models = section["models"]
        named = [
            Entry(name, models, said, found[models][said.get("step", name)])
            for name, said in section["figures"].items()
        ]
        yield section, named


def page() -> str:
    """Write the page from the records.

    Returns:
        Markdown.
    """
    parts = ["# Gallery", (GALLERY / "intro.md").read_text(encoding="utf-8").strip()]
    for section, held in entries():
        parts += [f"## {section['section']}", section["text"].strip()]
        for entry in held:
            parts += [f"### {entry.title}", *_shown(entry)]
            for label, key in (("The paper", "paper"), ("Here", "here")):
                if key in entry.said:
                    parts.append(f"**{label}.** {entry.said[key].strip()}")
    return "\n\n".join(parts) + "\n"


def _shown(entry: Entry) -> Iterator[str]:
    if entry.name in _RUNS:
        files = sorted((GALLERY / entry.models / entry.name).glob("*.svg"))
    else:
        drawn = entry.drawn()
        files = entry.files(drawn)
        for each in drawn:
            if "md" in each.texts:
                yield _own_blocks(each.texts["md"])
    for file in files:
        yield f"![{entry.title}]({file.relative_to(HERE).as_posix()})"


def _own_blocks(table: str) -> str:
    """The blocks of a table that are the study's own."""
    parts = table.split("\n**")[1:]
    own = itertools.takewhile(lambda part: not part.startswith(_BEFORE), parts)
    return "\n\n".join(f"**{part.strip()}" for part in own).partition("\n\n- ")[0]


def _copy(models: str, out: Path) -> None:
    """Copy what figures are drawn from, without the paths of the machine that made it."""
    shutil.rmtree(RECORDS / models, ignore_errors=True)
    for folder in _folders(models, out):
        copy = RECORDS / models / folder.relative_to(out)
        copy.mkdir(parents=True)
        for name in _KEPT:
            if (folder / name).is_file():
                text = (folder / name).read_text(encoding="utf-8")
                (copy / name).write_text(_without_paths(text, name), encoding="utf-8")


def _folders(models: str, out: Path) -> list[Path]:
    held = [each for _, part in entries({models: out}) for each in part if each.models == models]
    wanted = [each.source for each in held if each.name not in _RUNS]
    return [*dict.fromkeys(path for one in wanted for path in (*one.studies, *one.mixed))]


def _without_paths(text: str, name: str) -> str:
    """Names of models instead of where they were; what is sealed is sealed anew."""
    if name.endswith(".json"):
        return json.dumps(_sealed_again(json.loads(text)), indent=1) + "\n"
    return "".join(json.dumps(_sealed_again(json.loads(line))) + "\n" for line in text.splitlines())


def _sealed_again(record: Any) -> Any:
    named = _named(record)
    return sealed(named) if CHECKSUM in record else named


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {_named(key): _named(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_named(each) for each in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _draw(models: str, runs: Path | None) -> None:
    for _, held in entries():
        for entry in held:
            if entry.models != models or (entry.name in _RUNS and runs is None):
                continue
            if entry.name in _RUNS:
                assert runs is not None
                (run,) = sources(models, runs)[entry.name].studies
                drawn = draw_named(entry.name, run)
            else:
                drawn = entry.drawn()
            files = entry.files(drawn)
            if files:
                shutil.rmtree(files[0].parent, ignore_errors=True)
                files[0].parent.mkdir(parents=True)
            for each, file in zip(drawn, files, strict=False):
                each.write(file)


def main() -> None:
    """Copy, draw and write."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for models in ("toy", "real"):
        options.add_argument(f"--{models}", type=Path, help=f"the folder of the {models} studies")
    given: Mapping[str, Path | None] = vars(options.parse_args())
    for models, out in given.items():
        if out is not None:
            _copy(models, out)
        _draw(models, out)
    (HERE / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
