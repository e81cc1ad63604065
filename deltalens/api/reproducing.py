"""The papers' experiments, as sequences of the other functions."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from deltalens.api import training
from deltalens.api.described import Arg, Opt, described
from deltalens.api.recipe_steps import as_step
from deltalens.api.steps import Begun, Outcome, ReproduceWatch, Step
from deltalens.catalog.plugins import load_code
from deltalens.errors import DeltaLensError, fault_list
from deltalens.recipes import Places, Plan, PlannedFigure, PlannedStep, plan, recipes_for
from deltalens.recipes import recipe_names as every_recipe
from deltalens.recipes.journal import FAILED, FINISHED, Journal
from deltalens.recipes.pace import Pace

__all__ = ["Reproduction", "plans_of", "reproduce"]

_MOST_JOBS = 8
NOT_RUN = "not run"


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What became of recipes."""

    path: Path
    steps: tuple[Outcome, ...]
    figures: tuple[Outcome, ...]
    pictures: tuple[Path, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Steps and figures that failed."""
        return tuple(each for each in (*self.steps, *self.figures) if each.state == FAILED)

    def as_json(self) -> Mapping[str, Any]:
        """Everything, for scripts.

        Returns:
            JSON values by name.
        """
        return {
            "folder": str(self.path),
            "steps": [vars(each) for each in self.steps],
            "figures": [vars(each) for each in self.figures],
            "pictures": [str(each) for each in self.pictures],
        }


@described
def reproduce(
    names: Annotated[
        Sequence[str],
        Arg(
            "[NAME...]", "Recipes, figures or tables: gmt-fig3, mft-tab1, real-small.", repeat=True
        ),
    ] = (),
    out: Annotated[
        str | Path, Opt("Where everything is made.", metavar="DIR", flags=("-o",), common=True)
    ] = "deltalens-reproduced",
    *,
    all: Annotated[bool, Opt("Every recipe of the papers, and real-small.", common=True)] = False,
    demo: Annotated[
        bool, Opt("In miniature, on models made on the spot; no downloads.", common=True)
    ] = False,
    base: Annotated[
        str | Path | None,
        Opt("real-small: the model, a folder or hub id.", metavar="MODEL", common=True),
    ] = None,
    rows: Annotated[
        Mapping[str, Any] | Sequence[str],
        Opt("A local file for a recipe's data set; repeatable.", (), "NAME=FILE", common=True),
    ] = (),
    watch: Annotated[Any, Opt("A `ReproduceWatch`, told of progress.", python_only=True)] = None,
) -> Reproduction:
    """Run an experiment of the papers from beginning to end, and draw its figures.

    A recipe is a sequence of deltalens commands, with the models, data sets and hyperparameters of
    the paper, and ours, said to be so, where it is silent. Each finished step is kept, steps that
    several recipes share are made once, and a step that fails stops only those that need it: the
    same call goes on with what is missing. What belongs to others (EvalPlus, AlpacaEval) runs
    through their program, or is not run, with the reason.

    Args:
        names: of recipes, or of figures and tables, which run the part of a recipe they need.
        out: the folder of all results; each step has a folder of its own in it.
        all: every recipe.
        demo: the same steps on the demo's small models and rows.
        base: the model of `real-small`.
        rows: a recipe's data set -> a file of rows to use instead of downloading it.

    Returns:
        What became of every step and figure.

    Raises:
        DeltaLensError: an unknown name, a recipe's data set that does not exist, or results of
            other settings in the folder. Errors of steps are in what is returned.

    Example:
        >>> deltalens.reproduce(["gmt-fig33"])
        Traceback (most recent call last):
        deltalens.errors.DeltaLensError: no recipe or figure is called 'gmt-fig33'; did you ...
    """
    watch = watch or ReproduceWatch()
    plans = plans_of(names, out, all=all, demo=demo, base=base, rows=rows)
    run = _Run(plans, Path(out), demo, watch)
    run.check()
    run.prepare()
    # Demos train small models: several at once beat threads.
    crowded: AbstractContextManager[Any] = nullcontext()
    if demo:
        from deltalens.numerics.workers import one_thread

        crowded = one_thread()
    with crowded:
        for step in run.steps:
            run.take(step)
    return run.drawn()


def plans_of(
    names: Sequence[str],
    out: str | Path,
    *,
    all: bool = False,
    demo: bool = False,
    base: str | Path | None = None,
    rows: Mapping[str, Any] | Sequence[str] = (),
) -> list[Plan]:
    """Plan what `reproduce` would run.

    Args:
        names, out, all, demo, base, rows: as it takes them.

    Returns:
        A plan for each recipe.

    Raises:
        DeltaLensError: an unknown name, or none; or `rows` names what no recipe has.
    """
    if not names and not all:
        raise DeltaLensError(f"name a recipe, a figure or a table: {', '.join(every_recipe())}")
    files = _files(rows)
    places = Places(out=Path(out), base=str(base or ""), data=files, demo=demo)
    found = recipes_for(every_recipe() if all else names)
    unknown = [name for name in files if not any(name in recipe.data for recipe, _ in found)]
    if unknown:
        known = {name for recipe, _ in found for name in recipe.data}
        raise DeltaLensError(
            f"--rows {unknown[0]}=...: no such data set; there are {', '.join(sorted(known))}"
        )
    return [plan(recipe, places, figures) for recipe, figures in found]


def _files(rows: Mapping[str, Any] | Sequence[str]) -> dict[str, str]:
    if isinstance(rows, Mapping):
        return {name: str(file) for name, file in rows.items()}
    pairs = [each.partition("=") for each in rows]
    wrong = [name for name, _, file in pairs if not file]
    if wrong:
        raise DeltaLensError(f"--rows {wrong[0]}: write NAME=FILE")
    return {name: file for name, _, file in pairs}


class _Run:
    """The steps of some plans, one after the other."""

    def __init__(self, plans: Sequence[Plan], out: Path, demo: bool, watch: ReproduceWatch) -> None:
        self._plans, self._out, self._demo, self._watch = plans, out, demo, watch
        self._journal = Journal(out)
        self._ended: dict[str, Outcome] = {}
        self._pace = Pace(plans)
        self.steps = tuple({step.name: step for each in plans for step in each.steps}.values())

    def check(self) -> None:
        """Everything that can be known before any work.

        Raises:
            DeltaLensError: a step cannot be called so, or its folder holds other results.
        """
        others = []
        for step in self.steps:
            if step.owner is None:
                as_step(step)
            line = self._journal.of(step.name)
            if line is not None and line.identity != step.identity:
                others.append(f"{step.folder} (deltalens {line.version})")
        if others:
            raise DeltaLensError(
                fault_list(
                    f"{self._out} holds results of other settings, models or data; name another "
                    "folder:",
                    others,
                )
            )

    def prepare(self) -> None:
        """Make the demo's base, or download rows."""
        if not self.steps:
            return
        if self._demo:
            from deltalens.demo import build_base

            build_base(self._out, report=self._watch.train)
            return
        from deltalens.recipes.rows import fetch_rows, missing_rows

        for each in self._plans:
            for name in missing_rows(each):
                self._watch.fetch(name)
                fetch_rows(name, each)

    def take(self, step: PlannedStep) -> None:
        """Take a step, unless it is finished or cannot be taken."""
        line = self._journal.of(step.name)
        if line is not None and line.state == FINISHED:
            self._ended[step.name] = Outcome(
                name=step.name, state=FINISHED, seconds=line.seconds, before=True
            )
            return
        missing = [name for name in step.needs if self._ended[name].state != FINISHED]
        if missing:
            self._not_run(step, f"it needs {missing[0]}")
            return
        self._watch.at(self._begun(step))
        begun = time.monotonic()
        try:
            if step.owner is not None:
                reason = self._of_owner(step)
                if reason:
                    self._not_run(step, reason)
                    return
            else:
                self._watch.step(self._ready(step))
        except DeltaLensError as error:
            ended = self._journal.add(step.name, step.identity, FAILED, begun, str(error))
        else:
            ended = self._journal.add(step.name, step.identity, FINISHED, begun)
        outcome = Outcome(
            name=step.name, state=ended.state, reason=ended.reason, seconds=ended.seconds
        )
        self._ended[step.name] = outcome
        if outcome.state == FAILED:
            self._watch.end(outcome)

    def _begun(self, step: PlannedStep) -> Begun:
        lines = {each.name: self._journal.of(each.name) for each in self.steps}
        took = {
            name: line.seconds
            for name, line in lines.items()
            if line is not None and line.state == FINISHED
        }
        left = [name for name in lines if name not in took and name not in self._ended]
        return Begun(
            step=step,
            number=self.steps.index(step) + 1,
            total=len(self.steps),
            seconds_left=self._pace.seconds_left(took, left),
        )

    def _ready(self, step: PlannedStep) -> Step:
        """Its call; a training that was stopped goes on."""
        from deltalens.io.records import is_training

        made = as_step(step)
        more: dict[str, Any] = {}
        if made.function is training.train and is_training(step.folder):
            more["resume"] = True
        if self._demo and "seeds" in made.arguments:
            more["jobs"] = min(_MOST_JOBS, os.cpu_count() or 1)
        if "out" in made.arguments:
            step.folder.parent.mkdir(parents=True, exist_ok=True)
        return Step(made.question, made.function, {**made.arguments, **more})

    def _of_owner(self, step: PlannedStep) -> str:
        """Run another owner's program; or the reason why not."""
        assert step.owner is not None
        program = step.owner.program
        if self._demo:
            return f"the demo's models write no answers for it; {step.owner.because}"
        if not program or shutil.which(program) is None:
            install = f" ({step.owner.install})" if step.owner.install else ""
            return f"{step.owner.because}{install}"
        words = [glob.glob(word) or [word] if "*" in word else [word] for word in step.arguments]
        several = max(words, key=len)
        for each in several:
            line = [program, *(each if word is several else word[0] for word in words)]
            if subprocess.run(line, check=False).returncode:
                raise DeltaLensError(f"{program} failed; its message is above")
        return ""

    def _not_run(self, step: PlannedStep, reason: str) -> None:
        outcome = Outcome(name=step.name, state=NOT_RUN, reason=reason)
        self._ended[step.name] = outcome
        self._watch.end(outcome)

    def drawn(self) -> Reproduction:
        """Draw the figures whose steps are finished.

        Returns:
            What became of everything.
        """
        figures, pictures = [], []
        for each in self._plans:
            for figure in each.figures:
                unfinished = [n for n in figure.steps if self._ended[n].state != FINISHED]
                name = f"{each.recipe.name}: {figure.name}"
                if unfinished:
                    reason = f"it needs {unfinished[0]}"
                    figures.append(Outcome(name=name, state=NOT_RUN, reason=reason))
                    continue
                try:
                    pictures += _draw(figure, self._out / "figures" / each.recipe.name)
                    figures.append(Outcome(name=name, state=FINISHED))
                except DeltaLensError as error:
                    figures.append(Outcome(name=name, state=FAILED, reason=str(error)))
        return Reproduction(
            path=self._out,
            steps=tuple(self._ended.values()),
            figures=tuple(figures),
            pictures=tuple(pictures),
        )


def _draw(figure: PlannedFigure, folder: Path) -> list[Path]:
    """Draw a figure from all its studies; one after the other where it takes a single one."""
    draw = load_code("deltalens.figures:draw_figure")
    takes_several = load_code("deltalens.figures:figure_entry")(figure.name).several
    parts: Sequence[Sequence[Path]] = [figure.studies]
    if not takes_several and figure.studies:
        parts = [[study] for study in figure.studies]
    drawn: list[Path] = []
    for part in parts:
        out = folder if len(parts) == 1 else folder / part[0].name
        out.mkdir(parents=True, exist_ok=True)
        mixed = {"mixed": figure.mixed} if figure.mixed else {}
        drawn += draw(figure.name, part, out, paper=True, **mixed)
    return drawn
