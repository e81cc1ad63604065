"""Prints by how many bytes reading a file of rows raises a process's peak memory, and what came.

Run as a program: `python -m tests.support.reading FILE LIMIT`.
"""

import sys

import pyarrow.parquet  # noqa: F401

from deltalens.errors import DeltaLensError
from deltalens.scoring.rows import read_rows
from tests.support.memory import peak


def main(path: str, limit: int) -> None:
    """Read, measure."""
    before = peak()
    try:
        said = f"{len(read_rows(path, limit or None).rows)} rows"
    except DeltaLensError as error:
        said = str(error)
    print(peak() - before, said)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
