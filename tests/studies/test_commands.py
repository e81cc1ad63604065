"""What the commands print and write, for people and for scripts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import deltalens
from deltalens.errors import RecordError
from deltalens.reports.drop import summarize_drop_study
from tests.support.checkpoint_pairs import Pair, PairOf
from tests.support.runs import command, succeeds, table, write_rows

ESCAPE = "\x1b["
COLOR = re.compile(r"\x1b\[(\d+;)*(3[0-8]|9[0-7])[;m]")


@pytest.fixture(scope="module")
def pair(pair_of: PairOf) -> Pair:
    found: Pair = pair_of(family="llama")
    return found


def study_of(pair: Pair, out: Path) -> tuple[object, ...]:
    spec = ("--rates", "0.5", "--fidelity-tokens", 4)
    return ("drop-study", pair.ft, pair.base, "-o", out, *spec)


@pytest.fixture(scope="module")
def study(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with its pictures."""
    out = tmp_path_factory.mktemp("study") / "s"
    succeeds(*study_of(pair, out))
    return out


def test_study_folder_holds_records_table_texts_and_pictures(study: Path) -> None:
    assert sorted(file.name for file in study.iterdir()) == [
        *("cells.csv", "cells.jsonl", "gmt_fig3.png", "gmt_fig3.svg", "study.json", "texts.json"),
    ]


def test_table_on_the_disk_is_what_load_study_gives(study: Path) -> None:
    record = deltalens.load_study(study)
    columns = ["strategy", "scope", "rate", "seed", "metric", "value", "stderr", "n"]
    assert list(record.cells.columns) == columns
    assert record.kind == "drop-study"
    assert len(record.cells) == 5 * 3 * 2
    pd.testing.assert_frame_equal(record.cells, pd.read_csv(study / "cells.csv"))


def test_load_study_reads_one_that_is_not_finished(study: Path, tmp_path: Path) -> None:
    for name in ("study.json", "cells.jsonl"):
        (tmp_path / name).write_bytes((study / name).read_bytes())
    lines = (tmp_path / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:20])
    before = (tmp_path / "cells.jsonl").read_bytes()
    assert len(deltalens.load_study(tmp_path).cells) == 4 * 2
    assert (tmp_path / "cells.jsonl").read_bytes() == before, "reading repairs nothing"


def test_load_study_of_no_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"contains no study \(there is no study\.json\)"):
        deltalens.load_study(tmp_path)


def test_plot_redraws_the_same_pictures_and_computes_nothing(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("gmt_fig3.png", "gmt_fig3.svg")
    before, records = [(study / name).read_bytes() for name in names], table(study)
    for name in names:
        (study / name).unlink()
    monkeypatch.setattr("deltalens.studies.drop_study.drop_study", None)
    said = succeeds("plot", study)
    assert [(study / name).read_bytes() for name in names] == before
    assert [line.startswith("drawn: ") for line in said.splitlines()] == [True, True]
    assert table(study) == records
    pictures = json.loads(succeeds("plot", study, "--json"))["pictures"]
    assert pictures == [str(study / name) for name in names]


def test_plot_of_an_inspection(pair: Pair, tmp_path: Path) -> None:
    succeeds("inspect", pair.ft, pair.base, "-o", tmp_path / "a", "-q")
    said = succeeds("plot", tmp_path / "a")
    assert "anatomy.svg" in said
    svg = (tmp_path / "a" / "anatomy.svg").read_text()
    assert "log₂ |δ|" in svg
    assert "layers.1" in svg
    assert "q_proj" in svg


def test_picture_names_metrics_strategies_and_both_models(study: Path) -> None:
    svg = (study / "gmt_fig3.svg").read_text()
    for text in (
        "top-1 agreement",
        "KL(the fine-tune",
        "drop rate",
        "salient",
        "trivial",
        "random",
    ):
        assert text in svg
    for text in ("fine-tuned", "base", "exactly unchanged"):
        assert text in svg


@pytest.mark.parametrize("what", ["nothing", "an empty study"])
def test_plot_of_nothing_is_one_clear_message(study: Path, tmp_path: Path, what: str) -> None:
    if what == "an empty study":
        (tmp_path / "study.json").write_bytes((study / "study.json").read_bytes())
    result = command("plot", tmp_path)
    assert result.exit_code == 2
    reason = "contains no study" if what == "nothing" else "no "
    assert result.stderr.startswith(f"deltalens: {tmp_path}: {reason}")
    assert len(result.stderr.splitlines()) == 1


def test_json_is_one_object_and_nothing_else(pair: Pair, study: Path) -> None:
    result = command(*study_of(pair, study), "--json")
    assert result.stderr == ""
    found = json.loads(result.stdout)
    expected = json.loads(json.dumps(summarize_drop_study(deltalens.load_study(study)).as_json()))
    assert found == {
        **expected,
        "failed": [],
        "pictures": [str(p) for p in sorted(study.glob("gmt_fig3.*"))],
    }
    assert found["strategies"]["trivial"]["values"]["0"] == 1.0


def test_quiet_prints_nothing(pair: Pair, study: Path, tmp_path: Path) -> None:
    for arguments in (
        (*study_of(pair, tmp_path / "new"), "-q"),
        ("inspect", pair.ft, pair.base, "-q"),
        ("drop", pair.ft, pair.base, "-o", tmp_path / "out", "-q"),
    ):
        result = command(*arguments)
        assert (result.exit_code, result.output) == (0, "")


def test_answer_of_a_study_is_a_table_a_metric_and_sentences(pair: Pair, study: Path) -> None:
    said = succeeds(*study_of(pair, study))
    assert " drop rate   salient   trivial " in said
    assert "top1_agreement: fine-tune 1.0000, " in said
    assert f"table:   {study / 'cells.csv'}" in said
    assert f"picture: {study / 'gmt_fig3.svg'}" in said


def in_a_terminal(arguments: list[str], **environment: str) -> str:
    """What a program prints to a terminal of its own."""
    main, end = os.openpty()
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [program(), *arguments], stdout=end, stderr=end, env={**inherited, **environment}
    )
    os.close(end)
    printed = b""
    # Reading from a terminal whose last writer has gone is an input/output error.
    with contextlib.suppress(OSError):
        while part := os.read(main, 1 << 16):
            printed += part
    os.close(main)
    assert process.wait() == 0, printed
    return printed.decode()


@pytest.mark.slow
def test_no_color_takes_the_color_out_of_a_terminal(pair: Pair) -> None:
    inspect = ["inspect", str(pair.ft), str(pair.base)]
    assert COLOR.search(in_a_terminal(inspect, TERM="xterm-256color"))
    assert not COLOR.search(in_a_terminal(inspect, TERM="xterm-256color", NO_COLOR="1"))


def test_pipe_gets_no_color_and_no_progress(pair: Pair, study: Path) -> None:
    result = command(*study_of(pair, study))
    assert ESCAPE not in result.output
    assert result.stderr == ""


def test_several_files_of_data_and_an_answer_pattern(pair: Pair, tmp_path: Path) -> None:
    rows = [{"prompt": "ann 1+2>", "completion": "1+2=3"}, {"prompt": "bob>", "completion": "4"}]
    one, two = (write_rows(tmp_path / f"{name}.jsonl", rows) for name in ("one", "two"))
    found = json.loads(
        succeeds(
            *("drop-study", pair.ft, pair.base, "-o", tmp_path / "s", "--rates", "0.5"),
            *("--strategies", "trivial", "--data", one, "--data", two, "--changed-only"),
            *("--metrics", "exact_match", "--answer-pattern", r"(\d+)$", "--limit", "1", "--json"),
        )
    )
    assert found["metric"] == "one/exact_match"
    frame = deltalens.load_study(tmp_path / "s").cells
    assert set(frame["metric"]) == {"one/exact_match", "two/exact_match"}
    assert set(frame["n"]) == {1}


def program() -> Path:
    return Path(sys.executable).parent / "deltalens"


def test_help_takes_at_most_0_3_seconds() -> None:
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        done = subprocess.run([program(), "--help"], capture_output=True, text=True, check=True)
        taken.append(time.perf_counter() - begun)
    assert "drop-study" in done.stdout
    assert min(taken) <= 0.3, taken
