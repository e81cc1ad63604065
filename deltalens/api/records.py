"""Reading what studies and probes recorded, and what there is to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltalens.api.described import Arg, Opt, described
from deltalens.api.options import Files
from deltalens.catalog.plugins import load_code

if TYPE_CHECKING:
    import pandas as pd

    from deltalens.api.drawn import Drawn
    from deltalens.api.results import Run, Study

__all__ = [
    "draw_figure",
    "list_figures",
    "list_methods",
    "load_run",
    "load_study",
    "monitor",
    "plot",
    "show_environment",
]


def load_study(folder: str | Path) -> Study:
    """Read a study's folder, finished or not; loads no torch.

    Args:
        folder: of the study.

    Returns:
        The study.

    Raises:
        RecordError: no study there, a damaged one, or one of a format this version does not know.

    Example:
        >>> deltalens.load_study("study").kind
        'drop-study'
    """
    from deltalens.api.results import Study
    from deltalens.io.records import load_study as load

    return Study.of(load(folder))


def load_run(folder: str | Path) -> Run:
    """Read a run's folder, finished or not; loads no torch.

    Args:
        folder: a probe's `log_dir`.

    Returns:
        The run.

    Raises:
        RecordError: no run there, a damaged one, or one of a format this version does not know.

    Example:
        >>> deltalens.load_run("run").tensors["step"].nunique() > 0
        True
    """
    from deltalens.api.results import Run
    from deltalens.io.records import load_run as load

    return Run.of(load(folder))


@described
def monitor(
    folder: Annotated[
        str | Path, Arg("RUN", "A run's folder, or a training's that has a probe's run in it.")
    ],
    *,
    pictures: Annotated[bool, Opt("Draw PNG and SVG beside the records.", common=True)] = True,
    html: Annotated[
        bool, Opt("Write a page, report.html, beside the records.", common=True)
    ] = False,
) -> Run:
    """Show what a probe logged: gradients by layer group, overlap of their masks, updates.

    Reads the records alone, also while the training runs.

    Args:
        folder: a probe's `log_dir`, or the folder of a training with `probe`.
        pictures: draw them into the run's folder.
        html: write the run's page there, as `report` writes it.

    Returns:
        The run.

    Raises:
        RecordError: no run there, or a damaged one.

    Example:
        >>> run = deltalens.monitor("run", pictures=False)
        >>> run.summary() != ""
        True
    """
    from deltalens.io.records import find_run

    run = load_run(find_run(folder))
    if pictures:
        load_code("deltalens.figures:draw_figure")("gradients", run.path, titles="on")
    if html:
        from deltalens.api.reporting import report_run

        report_run(run)
    return run


@described
def plot(
    folder: Annotated[str | Path, Arg("FOLDER", "A study's or a training's folder.")],
    *,
    pdf: Annotated[bool, Opt("Write PDF, too.", common=True)] = False,
    paper: Annotated[
        bool, Opt("The paper's own rows in tables, of other models too.", common=True)
    ] = False,
) -> list[Path]:
    """Redraw the pictures of a study or a training from its records, computing nothing.

    They are those that its kind calls for, each under a title with the names of models and data;
    `deltalens figure` draws one of a paper's by name.

    Args:
        folder: of the study or training.
        pdf: write PDFs beside PNG and SVG.
        paper: show the paper's own rows in tables, and those of models that are not the study's,
            which are folded away otherwise.

    Returns:
        The files that were drawn.

    Raises:
        RecordError: neither is there, or one that has no pictures.

    Example:
        >>> [path.name for path in deltalens.plot("study")]
        ['gmt_fig3.png', 'gmt_fig3.svg']
    """
    drawn: list[Path] = load_code("deltalens.figures:draw")(folder, pdf=pdf, paper=paper)
    return drawn


@described
def draw_figure(
    name: Annotated[str, Arg("NAME", "As `deltalens figures` lists it: gmt-fig3, mft-tab1, ...")],
    studies: Annotated[
        Files, Arg("STUDY", "Study folders; one for each domain or model.", repeat=True)
    ] = (),
    *,
    out: Annotated[
        str | Path | None,
        Opt("Write .svg, .png, .pdf; of a table .md, .csv, .tex.", flags=("-o",), common=True),
    ] = None,
    medium: Annotated[
        str,
        Opt("paper, or slides with larger type", flags=("--for",), metavar="WHAT", common=True),
    ] = "paper",
    titles: Annotated[
        str,
        Opt("auto: on slides, not on paper; on or off", metavar="WHEN", common=True),
    ] = "auto",
    size: Annotated[
        str | None, Opt("In inches: 3.3 or 3.3x2.5.", metavar="WIDTH[xHEIGHT]", common=True)
    ] = None,
    dpi: Annotated[
        int | None, Opt("Dots per inch of a PNG (150; slides: 300).", common=True)
    ] = None,
    pdf: Annotated[bool, Opt("Write PDF, too, where -o is a folder or missing.")] = False,
    paper: Annotated[
        bool, Opt("The paper's own rows in a table, of other models too.", common=True)
    ] = False,
    ratio: Annotated[
        float | None, Opt("gmt-tab1, gmt-tab2: all methods at this mask ratio.", common=True)
    ] = None,
    mixed: Annotated[
        Files,
        Opt("mft-tab1, mft-tab2: a study from mixed FFT.", metavar="STUDY", common=True),
    ] = (),
) -> Drawn:
    """Draw a figure or table of the papers from the records of your studies.

    Computes nothing. A table has your numbers, and where the paper has your model its own and the
    difference. Without -o, the files are written beside the first study's records.

    Args:
        name: of the figure: `gmt-fig3`, ...
        studies: the folder of a study, or several where the paper shows several domains or models;
            none where the figure shows a method.
        out: a file, or an existing folder.
        medium: `paper` or `slides`.
        titles: whether the names of models and data stand on top: `on`, `off`, or `auto`: on slides
            but not on paper, where the caption has them.
        size: of the picture, in inches: its width, or width and height. By default as wide as a
            page and as high as the figure needs. Tables and diagrams are as large as their words.
        dpi: dots per inch of a PNG.
        pdf: write a PDF beside PNG and SVG.
        paper: show the paper's own rows below a study's, and beside it those of models that are not
            the study's; otherwise they are folded away. A table of no study has them always.
        ratio: the mask ratio at which every method is shown; None: each at its best.
        mixed: comparisons that start from a fine-tune on a mixture of domains.

    Returns:
        What was drawn: its files, tables and matplotlib figures.

    Raises:
        DeltaLensError: no such figure, or it cannot be drawn from these folders; says what is
            needed, and which command makes it.

    Example:
        >>> deltalens.draw_figure("gmt-fig3", "study", out="drops.pdf").files
        [PosixPath('drops.pdf')]
    """
    from deltalens.api.drawn import Drawn

    drawings = load_code("deltalens.figures:draw_for")(
        name,
        studies,
        ratio=ratio,
        mixed=mixed,
        medium=medium,
        titles=titles,
        size=size,
        dpi=dpi,
        paper=paper,
    )
    files = load_code("deltalens.figures:save_drawings")(drawings, studies, out, pdf=pdf)
    return Drawn(name, files, drawings)


@described
def list_figures() -> pd.DataFrame:
    """The figures and tables of the papers: what each shows, and the command that makes its study.

    Returns:
        The columns figure, paper, number, shows, study (the kind that it is drawn from; empty where
        it shows a method), several (whether it takes more than one), command, same_as (the figure
        that is drawn alike), lost (whether the body of the paper's table is lost).

    Example:
        >>> deltalens.list_figures().set_index("figure").loc["gmt-fig3", "study"]
        'drop-study'
    """
    import pandas as pd

    figures = load_code("deltalens.figures:FIGURES")
    columns = ("paper", "number", "shows", "source", "several", "command", "same_as", "lost")
    rows = [[name, *(getattr(entry, key) for key in columns)] for name, entry in figures.items()]
    return pd.DataFrame(rows, columns=["figure", *columns]).rename(columns={"source": "study"})


@described
def list_methods() -> pd.DataFrame:
    """The training methods: ours, and those of installed packages.

    Returns:
        The columns method, settings (of its own, with commas), studies (that take it), about.

    Raises:
        DeltaLensError: a package's method cannot be loaded.

    Example:
        >>> deltalens.list_methods().set_index("method").loc["gmt", "settings"]
        'mask-ratio,scope,apply-to,include,exclude'
    """
    import pandas as pd

    from deltalens.training.methods import method_class, trainable

    rows = []
    for name in trainable():
        kind = method_class(name)
        settings = ",".join(own.replace("_", "-") for own in kind.own_settings())
        rows.append((name, settings, kind.facts.about))
    return pd.DataFrame(rows, columns=["method", "settings", "about"])


@described
def show_environment() -> dict[str, Any]:
    """What a bug report needs: versions, machine, accelerator.

    Returns:
        Name -> value, as JSON values.

    Example:
        >>> [*deltalens.show_environment()][:2]
        ['deltalens', 'python']
    """
    import importlib.metadata
    import os
    import platform

    from deltalens.io.version import version

    packages = ("torch", "transformers", "trl", "peft", "accelerate", "safetensors", "numpy")
    versions: dict[str, Any] = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "deltalens": version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "accelerator": _accelerator(),
        **versions,
    }


def _accelerator() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
