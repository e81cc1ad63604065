"""What is done with a damaged file, and what was then seen: by whom the numbers are known, and the
numbers. All paths are relative to the workbench."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from deltalens.errors import DeltaLensError
from tests.support.mutate import workbench
from tests.support.specs import training_spec

__all__ = ["AGAIN", "NEW", "Refused", "Seen", "Unsound"]

NEW, AGAIN = Path("new"), Path("again")
"""Where an operation makes something: a fresh study or checkpoint, and a copy of a clean study."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Seen(NamedTuple):
    """What an operation came to."""

    identity: Any
    """What a study would know the input by; None of our own records, which are to be clean."""
    numbers: dict[str, Any]
    resumed: bool = False
    """Whether a study or a training went on with it, or said that it is another one."""


class Unsound(Exception):
    """An accepted mutant gave something that it must not."""


class Refused(Exception):
    """The command line refused, as it should."""


def paired(file: Path) -> Seen:
    """Both models opened, and their tensors matched: no weight is read."""
    from deltalens import pair

    found = pair("ft", "base")
    numbers = {"pairs": [str(one.ft) for one in found.pairs], "kept": found.kept}
    return Seen(_models(), numbers)


def inspected(file: Path) -> Seen:
    """`inspect`, which reads every weight."""
    import deltalens

    found = deltalens.inspect("ft", "base")
    numbers = {f"{g.level} {g.name}": g.metrics() for g in found.groups}
    return Seen(_models(), numbers)


def dropped(file: Path) -> Seen:
    """`drop`; what it takes `inspect` takes."""
    from safetensors import safe_open

    import deltalens

    given: dict[str, Any] = {"strategy": "random", "rate": "0.3"}
    try:
        deltalens.drop("ft", "base", NEW, rescale=True, **given)
    except DeltaLensError as error:
        # Numbers as large as no model's: only what rescaling makes of them is refused.
        if "rescaled at rate 0.3" not in str(error):
            raise
        deltalens.drop("ft", "base", NEW, **given)
    numbers = {}
    for shard in sorted(NEW.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as written:
            names = list(written.keys())
            numbers |= {name: written.get_tensor(name).tolist() for name in names}
    inspected(file)
    return Seen(_models(), numbers)


def _models() -> list[str]:
    from deltalens import open_checkpoint

    return [open_checkpoint(name).fingerprint for name in ("ft", "base")]


def read(file: Path) -> Seen:
    """Rows of any kind of file."""
    from deltalens.scoring.rows import read_rows

    given = file.parent if file.parent.name == "saved" else file
    found = read_rows(given)
    for row in found.rows:
        repr(row).encode()
        assert row.text or row.completion
    rows = [dataclasses.replace(row, location="") for row in found.rows]
    return Seen(found.identity, {"rows": repr(rows)})


def studied(file: Path) -> Seen:
    """A fresh drop study: with rows, or on texts that the fine-tune writes."""
    rows = file.parts[0] == "rows"
    make = workbench.STUDIES[
        "drop-study-on-data" if rows or file.suffix == ".jinja" else "drop-study"
    ]
    make(NEW)
    return Seen(_spec(NEW), {"table": (NEW / "cells.csv").read_text()})


def _spec(folder: Path) -> Any:
    return json.loads((folder / "study.json").read_text())["asked"]


def measured_on(file: Path) -> Seen:
    """A drop study that measures this file of rows."""
    import deltalens

    given = file.parent if file.parent.name == "saved" else file
    deltalens.drop_study("ft", "base", NEW, rates="0.5", strategies=["trivial"], data=[given])
    return Seen(_spec(NEW)["data"], {"table": (NEW / "cells.csv").read_text()})


def again(kind: str) -> Callable[[Path], Seen]:
    """A clean and finished study, asked for again with a damaged input: another study, or the same
    one, and then with the numbers that a fresh one has."""

    def run(file: Path) -> Seen:
        clean = Path("studies", kind)
        shutil.copytree(clean, AGAIN)
        try:
            workbench.STUDIES[kind](AGAIN)
        except DeltaLensError as error:
            if _contents(AGAIN) != _contents(clean):
                raise Unsound("a study that was not gone on with has changed") from error
            shutil.rmtree(AGAIN)
            if "holds another study" in str(error):
                return Seen(None, {}, resumed=True)
            raise
        kept = _contents(AGAIN)
        shutil.rmtree(AGAIN)
        if kept["cells.csv"] != _contents(clean)["cells.csv"]:
            raise Unsound("the clean study, asked for again, has another table")
        try:
            workbench.STUDIES[kind](NEW)
        except DeltaLensError as error:
            if file.name.endswith(".index.json"):
                # It says where the weights lie, and they are the same.
                return Seen(None, {}, resumed=True)
            raise Unsound(f"cells reused though a fresh study is refused: {error}") from error
        if _contents(NEW)["cells.csv"] != kept["cells.csv"]:
            raise Unsound("cells reused though a fresh study has other numbers")
        return Seen(None, {}, resumed=True)

    run.__name__ = f"again {kind}"
    return run


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def loaded(file: Path) -> Seen:
    """A study read and summarized."""
    from deltalens import load_study
    from deltalens.reports import summarize

    record = load_study(file.parent)
    if record.kind != "inspect":  # Its command tells what it found without a record.
        summary = summarize(record)
        list(summary.sentences()), list(summary.tables())
        json.dumps(summary.as_json())
    numbers: dict[str, Any] = {"asked": record.spec, "facts": record.facts, "kind": record.kind}
    for row in record.cells.to_dict("records"):
        value, error, count = row.pop("value"), row.pop("stderr"), row.pop("n")
        numbers.setdefault(f"cell {row}", []).append([value, error, count])
    return Seen(None, numbers)


def drawn(file: Path) -> Seen:
    """The pictures of a study or a training, anew."""
    from deltalens.figures import draw

    pictures = draw(file.parent)
    if not pictures or not all(picture.is_file() for picture in pictures):
        raise Unsound("a picture is missing")
    return Seen(None, {})


def cut_short(file: Path) -> None:
    """Before the damage: the last cell of the file's study was not measured yet."""
    journal = file.parent / "cells.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    if file.name != "cells.csv":
        (file.parent / "cells.csv").unlink()


def gone_on_with(file: Path) -> Seen:
    """A damaged study, finished or not, asked for again."""
    folder = file.parent
    workbench.STUDIES[folder.name](folder)
    if folder.name == "efficiency":
        # What was not measured yet takes another time.
        return Seen(None, {"asked": _spec(folder)}, resumed=True)
    table = (folder / "cells.csv").read_text()
    return Seen(None, {"table": table, "asked": _spec(folder)}, resumed=True)


def watched(file: Path) -> Seen:
    """A run read and summarized."""
    from pandas.util import hash_pandas_object

    from deltalens import load_run
    from deltalens.reports.run import summarize_run

    record = load_run("run")
    summary = summarize_run(record)
    list(summary.sentences()), list(summary.tables()), json.dumps(summary.as_json())
    numbers: dict[str, Any] = {"asked": record.spec, "facts": record.facts}
    for name in ("histograms", "tensors", "masks", "learned"):
        frame = getattr(record, name)
        numbers[name] = [list(frame), int(hash_pandas_object(frame).sum()), len(frame)]
    return Seen(None, numbers)


def watched_and_drawn(file: Path) -> Seen:
    """Its pictures."""
    from deltalens.figures import draw_figure

    draw_figure("gradients", "run")
    return Seen(None, {})


def masked(file: Path) -> Seen:
    """Masks applied to the model that they were made for."""
    from transformers import AutoModelForCausalLM

    import deltalens

    model = AutoModelForCausalLM.from_pretrained("ft", local_files_only=True)
    deltalens.apply_masks(model, file)
    return Seen(None, {"weights": [p.detach().tolist() for p in model.parameters()]})


def masks_read(file: Path) -> Seen:
    """Masks as the file has them."""
    from deltalens.io.mask_file import read_masks

    found = read_masks(file)
    masks = [[one.name, one.shape, one.digest, one.bits.tolist()] for one in found.masks]
    return Seen(None, {"masks": masks, "fingerprint": found.fingerprint, "about": found.about})


def entries_read(file: Path) -> Seen:
    """A sparse adapter as the file has it."""
    from deltalens.io.sparse_file import read_sparse

    found = read_sparse(file)
    return Seen(None, {"weights": repr(found.weights), "about": found.about})


def adapter_applied(file: Path) -> Seen:
    """A sparse adapter, of ours or of peft's form, put into its base."""
    from transformers import AutoModelForCausalLM

    from deltalens import SparseAdapter

    model = AutoModelForCausalLM.from_pretrained("base", local_files_only=True)
    SparseAdapter.read(file if file.parent == Path() else file.parent, model).apply(model)
    numbers = {name: weight.tolist() for name, weight in model.state_dict().items()}
    return Seen(None, numbers)


def recipe_read(file: Path) -> Seen:
    """A recipe, as far as a training's identity."""
    from deltalens.training.recipe import read_recipe

    spec = training_spec(**workbench.SHARED, recipe=read_recipe(file, "sft"))
    return Seen(json.loads(json.dumps(spec.identity())), {"recipe": repr(spec.recipe)})


def trained_by_recipe(file: Path) -> Seen:
    """A training of two steps."""
    from deltalens.training.recipe import read_recipe
    from deltalens.training.run import train

    spec = training_spec(**{**workbench.SHARED, "steps": 2}, recipe=read_recipe(file, "sft"))
    train("base", f"rows/{workbench.CELLS}", NEW, spec)
    return Seen(None, {})


def merged(file: Path) -> Seen:
    """An adapter merged into its base."""
    from deltalens.io.checkpoint import open_checkpoint
    from deltalens.io.locate import located

    with located("adapter", "base", merge_adapter=True) as (ft, _):
        checkpoint = open_checkpoint(ft)
        numbers = {name: checkpoint.read(name).tolist() for name in checkpoint.tensors}
        return Seen(checkpoint.fingerprint, numbers)


def training_resumed(file: Path) -> Seen:
    """A stopped training, to its end. Lines that somebody took away are missed in words."""
    trained = workbench.training(Path("training"), resume=True)
    weights = hashlib.sha256(Path("training/model.safetensors").read_bytes()).hexdigest()
    numbers = {"weights": weights}
    if not any("metrics.jsonl: missing; a new one" in note for note in trained.notes):
        numbers["metrics"] = Path("training/metrics.jsonl").read_text()
    return Seen(None, numbers, resumed=True)


def trainings(file: Path) -> Seen:
    """A training whose removed shares are drawn, or one that goes on."""
    return drawn(file) if file.parts[0] == "removed" else training_resumed(file)


def by_command(*arguments: str) -> Callable[[Path], Seen]:
    """A command line, `FOLDER` in it standing for the file's: exit code 0, or 2 and one message."""

    def run(file: Path) -> Seen:
        from typer.testing import CliRunner

        from deltalens.cli.main import app

        given = [one.replace("FOLDER", str(file.parent)) for one in arguments]
        result = CliRunner().invoke(app, given)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        said = result.stderr.strip()
        if hostile := _CONTROL.search(result.stdout + result.stderr):
            raise Unsound(f"{hostile.group()!r} reaches the terminal")
        if result.exit_code == 2 and said.startswith("deltalens: "):
            raise Refused(said.removeprefix("deltalens: "))
        if result.exit_code:
            raise Unsound(f"exit code {result.exit_code}: {said[:300]}")
        return Seen(None, {})

    run.__name__ = f"deltalens {arguments[0]}"
    return run
