"""A scan that was stopped goes on, and ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

import deltalens
from deltalens.errors import RecordError
from tests.studies.landscape.conftest import Three
from tests.support.killing.forked import finish, start
from tests.support.quadratics import Raising, measured, quadratics, scan
from tests.support.runs import journal, settings, table

pytestmark = pytest.mark.resume

PLANES = ["checkpoints", "line", "random", "trajectory", "hessian"]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("calls", [1, 2, 9])
def test_stopped_scan_of_a_grid_that_is_not_square_ends_the_same(
    tmp_path: Path, plane: str, calls: int
) -> None:
    origin, *others = quadratics(4)
    between = {"checkpoints": others[:2], "line": others[:1], "trajectory": others}.get(plane, [])
    spec = {"plane": plane, "others": between, "grid": 11 if plane == "line" else "3x5"}
    scan(origin, tmp_path / "whole", **spec)
    raising = Raising(calls, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        scan(origin, tmp_path / "s", metric=raising, **spec)
    scan(origin, tmp_path / "s", **spec)
    assert table(tmp_path / "s") == table(tmp_path / "whole")
    assert settings(tmp_path / "s") == settings(tmp_path / "whole")
    again = scan(origin, tmp_path / "s", metric=Raising(1, AssertionError("measured")), **spec)
    assert table(tmp_path / "s") == table(tmp_path / "whole")
    assert len(again.cells) == len(settings(tmp_path / "whole"))


def test_only_what_is_left_is_measured(tmp_path: Path) -> None:
    origin, b, c = quadratics(3)
    with pytest.raises(KeyboardInterrupt):
        scan(
            origin,
            tmp_path / "s",
            others=[b, c],
            grid="3x5",
            metric=Raising(8, KeyboardInterrupt()),
        )
    # 7 of 18 points are journalled: the 12th of the rest would be one too many.
    last = Raising(12, AssertionError("measured again"))
    assert len(scan(origin, tmp_path / "s", others=[b, c], grid="3x5", metric=last).cells) == 18
    assert last.left == 1


def test_point_whose_line_was_torn_between_its_data_is_measured_again(tmp_path: Path) -> None:
    origin, b = quadratics(2)

    def both(model: object) -> dict[str, float]:
        return {"train/loss": measured(model)["loss"], "test/loss": 2.0}

    scan(origin, tmp_path / "whole", others=[b], grid=5, metric=both)
    scan(origin, tmp_path / "s", others=[b], grid=5, metric=both)
    file = tmp_path / "s" / "cells.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:7]) + lines[7][:30])
    scan(origin, tmp_path / "s", others=[b], grid=5, metric=both)
    assert table(tmp_path / "s") == table(tmp_path / "whole")
    assert len(set(settings(tmp_path / "s"))) == len(journal(tmp_path / "s")) == 2 * 7


def test_another_scan_in_the_same_folder_is_refused_with_the_fields_that_differ(
    tmp_path: Path,
) -> None:
    origin, b, c = quadratics(3)
    scan(origin, tmp_path / "s", others=[b], grid=5)
    differs = r"holds another study[\s\S]*grid: \[5\] in the folder, \[7\] now"
    with pytest.raises(RecordError, match=differs):
        scan(origin, tmp_path / "s", others=[b], grid=7)
    with pytest.raises(RecordError, match="models"):
        scan(origin, tmp_path / "s", others=[c], grid=5)
    scan(origin, tmp_path / "s", others=[c], grid=5, fresh=True)


def test_fresh_hessian_does_not_take_the_old_directions(tmp_path: Path) -> None:
    one, other = quadratics(2)
    scan(one, tmp_path / "s", plane="hessian", grid="2x3")
    other.curvature.mul_(2)
    scan(other, tmp_path / "s", plane="hessian", grid="2x3", fresh=True)
    scan(other, tmp_path / "new", plane="hessian", grid="2x3")
    assert table(tmp_path / "s") == table(tmp_path / "new")


def arguments(three: Three, out: Path) -> list[str]:
    models = [str(folder) for folder in (three.origin, *three.others)]
    data = [text for file in three.data for text in ("--data", str(file))]
    return ["landscape", *models, *data, "--grid", "4x7", "-q", "-o", str(out)]


def lines(out: Path) -> list[str]:
    file = out / "cells.jsonl"
    if not file.exists():
        return []
    raw = file.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1].splitlines()
    return [json.dumps(json.loads(line)["setting"]) for line in whole]


@pytest.fixture(scope="module")
def whole(three: Three, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finish(arguments(three, folder / "study"), folder / "computed")
    return folder / "study"


@pytest.mark.slow
def test_killed_scan_goes_on_and_ends_as_if_it_had_not_been(
    three: Three, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    for cells in (1, 20):
        process = start(arguments(three, out), tmp_path / "computed")
        while process.is_alive() and len(lines(out)) < cells:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert cells <= len(lines(out)) < 2 * (3 + 28)
    finish(arguments(three, out), tmp_path / "computed")
    assert table(out) == table(whole)
    assert settings(out) == settings(whole)


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(
    three: Three, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    process = start(arguments(three, out), tmp_path / "computed", tmp_path / "said")
    while process.is_alive() and len(lines(out)) < 9:
        time.sleep(0.002)
    assert process.pid
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert (tmp_path / "said").read_text().strip() == (
        f"deltalens: stopped; finished points are kept in {out}, the same command goes on"
    )
    kept = lines(out)
    assert len(table(out).splitlines()) == 1 + 3 * len(kept), "exact match, loss, perplexity"
    finish(arguments(three, out), tmp_path / "computed")
    assert table(out) == table(whole)
    assert lines(out)[: len(kept)] == kept
    assert len(deltalens.load_study(out).cells) == 3 * len(lines(out))
