"""Progress in lines: the time left is by the pace of the stage, not by what went before it."""

import pytest

from deltalens.cli import console
from deltalens.cli.console import Meter


def test_what_a_stage_does_first_is_no_part_of_its_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    meter = Meter(None, quiet=False)
    meter.stage("inspecting", 10)
    now[0] += 600
    meter.advance(1)
    now[0] += 6
    meter.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "inspecting: 10 % done",
        "inspecting: 20 % done, 0:48 left",
    ]
