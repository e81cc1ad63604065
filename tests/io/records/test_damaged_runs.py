"""A run's tables say what was written, or are refused by the name of the part."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import deltalens
from deltalens.errors import RecordError
from deltalens.figures import draw_named
from deltalens.io.checksum import CHECKSUM
from deltalens.io.records.parquet import write_parquet
from deltalens.io.records.run import RunWriter
from deltalens.io.records.run_tables import TABLES
from tests.support.edits import edit

pytestmark = pytest.mark.bad_input

NAMES = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]


def make_run(folder: Path, steps: int = 4) -> Path:
    """As a probe writes one."""
    writer = RunWriter(folder, {"kind": "gradient", "every": 1}, seconds=100)
    writer.facts["tensors"] = dict.fromkeys(NAMES, 64)
    names = (np.arange(2, dtype=np.int32), NAMES)
    for step in range(steps):
        common = {"step": [step] * 2, "tensor": names}
        bins = {"low": [0.25, 0.5], "high": [0.3125, 0.625], "count": [40, 24]}
        writer.add("histograms", {**common, **bins})
        sizes = {name: [1.0, 2.0] for name in ("norm", "mean", "q50", "q90", "q99", "q999")}
        counts = {name: [0, 0] for name in ("zeros", "subnormals", "infinities", "nans")}
        writer.add("tensors", {**common, "entries": [64, 64], **sizes, **counts})
        mask = {"mask_ratio": [0.5] * 2, "threshold": [0.1, 0.2], "entries": [64, 64]}
        overlap = {"kept": [32, 32], "coverage": [0.5, 0.6], "jaccard_previous": [0.5, 0.4]}
        more = {"containment_previous": [0.7, 0.6], "chance_previous": [0.3, 0.3]}
        writer.add("masks", {**common, **mask, **overlap, **more})
    writer.close()
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    found = deltalens.load_run(folder)
    return {name: getattr(found, name) for name in TABLES}


def part(run: Path, table: str) -> Path:
    return run / table / "part-00000.parquet"


def replace(file: Path, **columns: Any) -> None:
    """Other columns in a part, sealed as it was."""
    table = pq.read_table(file)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place)
        if values is not None:
            table = table.add_column(place, name, pa.array(values))
    write_parquet(file, table)


def test_every_reader_of_parquet_reads_a_part(run: Path) -> None:
    frame = pd.read_parquet(run / "tensors")
    assert len(frame) == 8
    assert set(frame["tensor"]) == {*NAMES}
    assert pq.ParquetFile(part(run, "masks")).metadata.num_rows == 8


@pytest.mark.parametrize("table", ["tensors", "histograms", "masks"])
def test_a_flipped_bit_anywhere_is_refused(run: Path, table: str) -> None:
    """In pages, in their headers, in the footer, in the checksum itself."""
    file, draw = part(run, table), random.Random(0)
    raw = file.read_bytes()
    for at in [*(draw.randrange(len(raw)) for _ in range(150)), *range(len(raw) - 60, len(raw))]:
        file.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << draw.randrange(8))]) + raw[at + 1 :])
        with pytest.raises(RecordError, match=r"part-00000\.parquet: damaged: its checksum"):
            deltalens.load_run(run)


def test_a_part_that_is_cut_short_or_empty_is_refused(run: Path) -> None:
    file = part(run, "tensors")
    raw = file.read_bytes()
    for size in (0, 3, 12, 100, len(raw) - 1):
        file.write_bytes(raw[:size])
        with pytest.raises(RecordError, match=r"part-00000\.parquet: damaged"):
            deltalens.load_run(run)


def test_runs_without_checksums_are_read(run: Path) -> None:
    clean = tables_of(run)
    for file in run.rglob("*.parquet"):
        pq.write_table(pq.read_table(file), file, compression="zstd")
    with pytest.raises(RecordError, match="damaged: its checksum"):
        deltalens.load_run(run)
    edit(run / "run.json", lambda said: said.update(format=1))
    for name, frame in tables_of(run).items():
        pd.testing.assert_frame_equal(frame, clean[name])
    edit(run / "run.json", lambda said: said.update(format=2))
    said = (run / "run.json").read_text().replace(CHECKSUM, "sum")
    (run / "run.json").write_text(said)
    with pytest.raises(RecordError, match=r"run\.json: damaged: its checksum is missing"):
        deltalens.load_run(run)


@pytest.mark.parametrize(
    ("table", "columns", "said"),
    [
        ("histograms", {"low": None}, "'low' is missing"),
        ("histograms", {"low": [0.5, 0.0] * 4}, "'low' has a value that is not at least"),
        ("histograms", {"low": [0.5, float("inf")] * 4}, "'low' has a value"),
        ("histograms", {"low": [0.5, float("nan")] * 4}, "'low' has a value"),
        ("histograms", {"low": ["a", "b"] * 4}, "'low' has type string; expected float64"),
        ("histograms", {"count": [1, -1] * 4}, "'count' has a value that is not at least 0"),
        ("tensors", {"entries": [1, None] * 4}, "'entries' has missing values"),
        ("tensors", {"entries": [0.5, 1.0] * 4}, "'entries' has type double; expected int64"),
        ("masks", {"coverage": [0.5, 7.0] * 4}, "'coverage' has a value .* at most 1"),
        ("masks", {"step": [None] * 8}, "'step' has type null; expected int64"),
    ],
)
def test_a_column_of_another_kind_or_out_of_bounds_is_named(
    run: Path, table: str, columns: dict[str, Any], said: str
) -> None:
    replace(part(run, table), **columns)
    with pytest.raises(RecordError, match=rf"{table}/part-00000\.parquet: column {said}"):
        deltalens.load_run(run)


def test_a_column_that_this_version_does_not_know_is_left_alone(run: Path) -> None:
    file = part(run, "tensors")
    table = pq.read_table(file)
    write_parquet(file, table.append_column("later", pa.array([1.0] * len(table))))
    assert set(tables_of(run)["tensors"]["later"]) == {1.0}


def test_rows_of_a_step_that_a_kill_cut_short_are_not_drawn(run: Path) -> None:
    for table in ("histograms", "masks"):
        names = ["a.norm.weight", *NAMES[1:]] * 4
        replace(part(run, table), step=[-1, 0, 1, 1, 2, 2, 9, 10], tensor=names)
    assert draw_named("gradients", run)


@pytest.mark.parametrize("facts", [None, [], {"tensors": []}, {"tensors": {"a": -1}}])
def test_facts_of_another_kind_are_refused(run: Path, facts: Any) -> None:
    edit(run / "run.json", lambda said: said.update(facts=facts))
    with pytest.raises(RecordError, match=r"run\.json: facts"):
        deltalens.load_run(run)


def test_a_part_that_is_gone_is_missed_once_the_run_is_closed(run: Path) -> None:
    part(run, "tensors").unlink()
    with pytest.raises(RecordError, match="tensors: has 0 parts, but had 1 when the run was"):
        deltalens.load_run(run)
