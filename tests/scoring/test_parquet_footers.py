"""Footers of Parquet files: their numbers are Arrow's, and no damage of one ends the process."""

import io
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltalens.scoring.parquet_footer import column_sizes

pytestmark = pytest.mark.bad_input

TABLE = pa.table(
    {
        "prompt": ["a", "b", None] * 50,
        "turns": [[{"role": "user", "content": "x"}]] * 150,
        "number": list(range(150)),
        "truth": [True, False, None] * 50,
        "real": [0.5] * 150,
    }
)
READ = """
import sys
from pathlib import Path
from deltalens.errors import DeltaLensError
from deltalens.scoring.rows import read_rows
for file in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_rows(file)
    except DeltaLensError:
        pass
"""


def written(**options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, row_group_size=40, **options)
    return sink.getvalue()


@pytest.mark.parametrize("version", ["1.0", "2.6"])
@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
def test_numbers_are_arrow_s(version: str, compression: str) -> None:
    content = written(version=version, compression=compression, write_page_checksum=True)
    about = pq.ParquetFile(io.BytesIO(content)).metadata
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    wanted = [[group.column(at) for at in range(about.num_columns)] for group in groups]
    assert column_sizes(io.BytesIO(content)) == [
        [(one.num_values, one.total_uncompressed_size) for one in group] for group in wanted
    ]


def test_a_damaged_footer_is_an_error_of_ours_or_none() -> None:
    content, draw = written(), random.Random(0)
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(start, len(content))] = draw.randrange(256)
        with suppress(ValueError):
            column_sizes(io.BytesIO(bytes(damaged)))


def test_no_flipped_bit_of_a_footer_ends_the_process(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": ["c", "d"]}), sink)
    content = sink.getvalue()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(start, start + 240):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            (tmp_path / f"{place}-{bit}.parquet").write_bytes(damaged)
    run = subprocess.run([sys.executable, "-c", READ, tmp_path], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode(errors="replace")[-500:]
