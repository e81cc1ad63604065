"""A study goes on where it stopped, and touches nothing that is not its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deltalens
import deltalens.figures
from deltalens.errors import DeltaLensError, RecordError
from deltalens.io.records import StudyFolder
from deltalens.scoring import loading as module
from deltalens.scoring import texts as texts_module
from tests.support.checkpoint_pairs import Pair, PairOf
from tests.support.edits import edit
from tests.support.runs import (
    FEW,
    StopAfter,
    command,
    journal,
    on_each_cell,
    settings,
    succeeds,
    table,
)
from tests.support.studies import drop_study

pytestmark = pytest.mark.resume

ASKED: dict[str, Any] = {"rates": ["0.2", "0.6", "0.9"], "seeds": 2}
CELLS, COMPUTED = 4 * 5, 2 + 3 * 4
"""Rates 0 and 1 stand under every strategy and seed, and are computed once."""


class Norms:
    """A metric that depends on every parameter, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def metric(self, model: nn.Module) -> dict[str, float]:
        """Two numbers of the model, one of them awkward."""
        self.calls += 1
        total = sum(float(p.double().pow(2).sum()) for p in model.parameters())
        return {"norm": total, "not a number": float("nan")}


@pytest.fixture
def pair(pair_of: PairOf) -> Pair:
    found: Pair = pair_of(family="llama")
    return found


def study(pair: Pair, out: Path, norms: Norms, **more: Any) -> None:
    deltalens.drop_study(pair.ft, pair.base, out, metric=norms.metric, **{**ASKED, **more})


def _interrupt(*given: Any) -> Any:
    raise KeyboardInterrupt


def interrupted(pair: Pair, out: Path, cells: int) -> Norms:
    """A study that was stopped after so many cells."""
    norms = Norms()
    with pytest.raises(KeyboardInterrupt):
        study(pair, out, norms, watch=on_each_cell(StopAfter(cells, KeyboardInterrupt())))
    assert len(journal(out)) == cells
    return norms


@pytest.mark.parametrize("cells", [1, 5, 13, CELLS])
def test_interrupted_and_resumed_equals_uninterrupted(
    pair: Pair, tmp_path: Path, cells: int
) -> None:
    whole = Norms()
    study(pair, tmp_path / "whole", whole)
    before, after = interrupted(pair, tmp_path / "parts", cells), Norms()
    study(pair, tmp_path / "parts", after)
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    assert settings(tmp_path / "parts") == settings(tmp_path / "whole")
    assert len(set(settings(tmp_path / "whole"))) == CELLS
    assert whole.calls == COMPUTED
    assert before.calls + after.calls == COMPUTED


def test_interruption_leaves_a_table_of_what_is_finished(pair: Pair, tmp_path: Path) -> None:
    interrupted(pair, tmp_path / "s", 4)
    assert len(table(tmp_path / "s").splitlines()) == 1 + 2 * 4


@pytest.mark.parametrize("cells", [1, 5])
def test_interruption_amid_the_journal_loses_nothing_that_it_holds(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    out, fsync, before, after = tmp_path / "s", os.fsync, Norms(), Norms()

    def synced_and_interrupted(file: int) -> None:
        fsync(file)
        if (out / "cells.jsonl").exists() and len(journal(out)) == cells:
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", synced_and_interrupted)
    with pytest.raises(KeyboardInterrupt):
        study(pair, out, before)
    assert len(journal(out)) == cells
    assert len(table(out).splitlines()) == 1 + 2 * cells
    study(pair, out, after)
    assert before.calls + after.calls == COMPUTED


def test_finished_study_loads_no_model(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(pair, tmp_path / "s", Norms())
    before = table(tmp_path / "s")
    (tmp_path / "s" / "cells.csv").unlink()
    monkeypatch.setattr(module, "load_model", None)
    study(pair, tmp_path / "s", Norms())
    assert table(tmp_path / "s") == before


@pytest.mark.parametrize("cut", [1, 40, 10_000])
def test_torn_last_line_is_computed_again(pair: Pair, tmp_path: Path, cut: int) -> None:
    study(pair, tmp_path / "s", Norms())
    before, file = table(tmp_path / "s"), tmp_path / "s" / "cells.jsonl"
    raw = file.read_bytes()
    last = len(raw.splitlines(keepends=True)[-1])
    file.write_bytes(raw[: -min(cut, last - 1)])
    again = Norms()
    study(pair, tmp_path / "s", again)
    assert again.calls == 0, "the last cell is the base under another name: nothing to compute"
    assert table(tmp_path / "s") == before
    assert len(journal(tmp_path / "s")) == CELLS


def test_torn_line_of_an_inner_cell_costs_one_computation(pair: Pair, tmp_path: Path) -> None:
    study(pair, tmp_path / "s", Norms())
    before, file = table(tmp_path / "s"), tmp_path / "s" / "cells.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1])[:-9])
    again = Norms()
    study(pair, tmp_path / "s", again)
    assert again.calls == 1
    assert table(tmp_path / "s") == before


def test_damaged_journal_is_an_error_with_its_line(pair: Pair, tmp_path: Path) -> None:
    interrupted(pair, tmp_path / "s", 3)
    file = tmp_path / "s" / "cells.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + '{"setting": 3}\n' + lines[2])
    with pytest.raises(RecordError, match=r"cells\.jsonl, line 2: damaged"):
        study(pair, tmp_path / "s", Norms())


@pytest.mark.parametrize("remains", [".lock", ".study.json.0badcafe-1-00.part"])
def test_what_a_kill_before_the_manifest_leaves_is_no_obstacle(
    pair: Pair, tmp_path: Path, remains: str
) -> None:
    out = tmp_path / "s"
    out.mkdir()
    (out / remains).write_text('{"form')
    study(pair, out, Norms())
    assert len(journal(out)) == CELLS


def test_fresh_discards_the_other_study(pair: Pair, tmp_path: Path) -> None:
    study(pair, tmp_path / "s", Norms(), seeds=1)
    norms = Norms()
    study(pair, tmp_path / "s", norms, fresh=True)
    assert norms.calls == COMPUTED
    assert len(journal(tmp_path / "s")) == CELLS


@pytest.mark.parametrize("step", ["unlink", "replace"])
def test_fresh_that_is_killed_leaves_a_study_that_fresh_accepts(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    study(pair, tmp_path / "s", Norms(), seeds=1)
    with monkeypatch.context() as patch:
        if step == "unlink":
            calls = StopAfter(2, KeyboardInterrupt())
            unlink = Path.unlink
            patch.setattr(Path, "unlink", lambda file, **how: (calls(), unlink(file, **how)))
        else:
            patch.setattr(StudyFolder, "write_manifest", StopAfter(1, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            study(pair, tmp_path / "s", Norms(), fresh=True)
    norms = Norms()
    study(pair, tmp_path / "s", norms, fresh=True)
    assert norms.calls == COMPUTED


def test_fresh_that_is_interrupted_before_its_first_cell_can_be_given_again(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    study(pair, out, Norms(), seeds=1)
    deltalens.figures.draw(out)
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_model", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            study(pair, out, Norms(), fresh=True)
    norms = Norms()
    study(pair, out, norms, fresh=True)
    assert norms.calls == COMPUTED


@pytest.mark.parametrize("fresh", [False, True])
def test_foreign_folder_is_refused_and_left_alone(pair: Pair, tmp_path: Path, fresh: bool) -> None:
    out = tmp_path / "s"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(DeltaLensError, match=r"s: .*choose another folder"):
        study(pair, out, Norms(), fresh=fresh)
    assert [file.name for file in out.iterdir()] == ["thesis.tex"]


def test_input_is_refused_as_the_study_folder(pair: Pair) -> None:
    before = sorted(file.name for file in pair.ft.iterdir())
    with pytest.raises(DeltaLensError, match="choose another folder"):
        study(pair, pair.ft / "study", Norms())
    assert sorted(file.name for file in pair.ft.iterdir()) == before


def test_another_study_is_refused_and_every_differing_field_named(
    pair: Pair, tmp_path: Path
) -> None:
    study(pair, tmp_path / "s", Norms())
    before = (tmp_path / "s" / "study.json").read_bytes()
    with pytest.raises(RecordError) as raised:
        study(pair, tmp_path / "s", Norms(), seeds=1, scope="global", changed_only=True)
    message = str(raised.value)
    assert "holds another study" in message
    assert "fresh" in message.splitlines()[0]
    assert "scope: 'tensor' in the folder, 'global' now" in message
    assert "changed_only: False in the folder, True now" in message
    assert "rates" not in message
    assert "seeds" not in message, "a smaller study of the same kind is no other study"
    assert (tmp_path / "s" / "study.json").read_bytes() == before


def test_other_weights_are_another_study(pair: Pair, pair_of: PairOf, tmp_path: Path) -> None:
    study(pair, tmp_path / "s", Norms())
    other = pair_of(family="llama", tied=True)
    with pytest.raises(RecordError, match=r"base\.weights: [\s\S]*ft\.weights: "):
        study(other, tmp_path / "s", Norms())


def test_same_weights_in_another_place_are_the_same_study(pair: Pair, tmp_path: Path) -> None:
    study(pair, tmp_path / "s", Norms())
    (tmp_path / "moved").symlink_to(pair.ft)
    norms = Norms()
    study(Pair(tmp_path / "moved", pair.base), tmp_path / "s", norms)
    assert norms.calls == 0


def test_study_of_another_format_is_an_error_not_a_guess(pair: Pair, tmp_path: Path) -> None:
    study(pair, tmp_path / "s", Norms())
    manifest = json.loads((tmp_path / "s" / "study.json").read_text())
    (tmp_path / "s" / "study.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(RecordError, match="format 99"):
        study(pair, tmp_path / "s", Norms())


def test_second_writer_is_refused_while_the_first_is_at_work(pair: Pair, tmp_path: Path) -> None:
    refused = []

    def also() -> None:
        result = command("drop-study", pair.ft, pair.base, "-o", tmp_path / "s", "--fresh")
        refused.append((result.exit_code, result.output))

    study(pair, tmp_path / "s", Norms(), watch=on_each_cell(lambda: refused or also()))
    assert refused[0][0] == 2
    assert "another process is writing to this study" in refused[0][1]
    assert len(journal(tmp_path / "s")) == CELLS


def test_lock_is_given_back_after_an_error(pair: Pair, tmp_path: Path) -> None:
    interrupted(pair, tmp_path / "s", 2)
    study(pair, tmp_path / "s", Norms())


def test_texts_are_sampled_once_and_used_again_on_resume(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, spec = tmp_path / "s", {**ASKED, "fidelity": FEW}
    with pytest.raises(KeyboardInterrupt):
        drop_study(
            pair.ft, pair.base, out, watch=on_each_cell(StopAfter(3, KeyboardInterrupt())), **spec
        )
    texts = (out / "texts.json").read_bytes()
    monkeypatch.setattr(texts_module, "sample_texts", None)
    used: list[Any] = []
    fidelity = texts_module.Fidelity
    monkeypatch.setattr(
        texts_module,
        "Fidelity",
        lambda model, given, *more: used.append(given) or fidelity(model, given),
    )
    drop_study(pair.ft, pair.base, out, **spec)
    assert used == [json.loads(texts)["texts"]]
    assert (out / "texts.json").read_bytes() == texts


def test_damaged_texts_are_named_and_nothing_is_measured_on_them(
    pair: Pair, tmp_path: Path
) -> None:
    out, spec = tmp_path / "s", {**ASKED, "fidelity": FEW}
    drop_study(pair.ft, pair.base, out, **spec)
    raw, cells = (out / "texts.json").read_bytes(), (out / "cells.jsonl").read_bytes()
    more = {**spec, "rates": [*spec["rates"], "0.45"]}

    def refused(said: str) -> None:
        with pytest.raises(RecordError, match=rf"texts\.json: {said}"):
            drop_study(pair.ft, pair.base, out, **more)
        assert (out / "cells.jsonl").read_bytes() == cells

    place = raw.rindex(b"]")
    (out / "texts.json").write_bytes(raw[:place] + b", 7" + raw[place:])
    refused("damaged: its checksum does not match its content")
    for odd in ([], [[]], [[10**6]], [[-1]], [[True]], [[0.5]], "no texts"):
        edit(out / "texts.json", lambda record, odd=odd: record.update(texts=odd))
        refused("texts")


def test_fidelity_resumed_equals_uninterrupted(pair_of: PairOf, tmp_path: Path) -> None:
    pair = pair_of(family="mixtral", dtype=torch.bfloat16)
    spec = {**ASKED, "fidelity": FEW}
    drop_study(pair.ft, pair.base, tmp_path / "whole", **spec)
    for cells in (1, 6, 8):
        watch = on_each_cell(StopAfter(cells, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            drop_study(pair.ft, pair.base, tmp_path / "parts", watch=watch, **spec)
    drop_study(pair.ft, pair.base, tmp_path / "parts", **spec)
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    assert (tmp_path / "parts" / "study.json").read_bytes() == (
        tmp_path / "whole" / "study.json"
    ).read_bytes()


def test_command_goes_on_with_what_the_python_twin_began(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "s"
    watch = on_each_cell(StopAfter(2, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        deltalens.drop_study(
            pair.ft, pair.base, out, rates=["0.5"], strategies=["trivial"], watch=watch
        )
    first = settings(out)
    succeeds(
        "drop-study", pair.ft, pair.base, "-o", out, "--rates", "0.5", "--strategies", "trivial"
    )
    assert settings(out)[:2] == first
    assert len(settings(out)) == 3


@pytest.mark.parametrize("side", ["ft", "base"])
@pytest.mark.parametrize(
    "part", ["weights", "config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_a_model_that_was_changed_in_place_is_another_study(
    pair: Pair, tmp_path: Path, side: str, part: str
) -> None:
    """One entry in the middle of a shard, a space in a file beside it: refused by its name."""
    copies = {name: tmp_path / name for name in ("ft", "base")}
    shutil.copytree(pair.ft, copies["ft"])
    shutil.copytree(pair.base, copies["base"])
    for folder in copies.values():
        (folder / "chat_template.jinja").touch()
    norms = Norms()
    deltalens.drop_study(*copies.values(), tmp_path / "s", metric=norms.metric, **ASKED)
    calls, changed = norms.calls, copies[side]
    if part == "weights":
        file = min(changed.glob("*.safetensors"))
        raw = bytearray(file.read_bytes())
        raw[(8 + int.from_bytes(raw[:8], "little") + len(raw)) // 2] ^= 1
        file.write_bytes(raw)
    else:
        with (changed / part).open("a") as stream:
            stream.write(" ")
    differs = rf"another study[^\n]*\n  - {side}\.{part}: '\w+' in the folder"
    with pytest.raises(RecordError, match=differs):
        deltalens.drop_study(*copies.values(), tmp_path / "s", metric=norms.metric, **ASKED)
    assert norms.calls == calls
