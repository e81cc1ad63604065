"""Run commands on a terminal of a given width, in a process of its own; not a test.

`python -m tests.support.terminal FILE LINE...`: every LINE holds a command's arguments as JSON.
What is printed goes to standard output, a terminal here; the tables as they are meant to be go to
FILE.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def on_terminal(width: int, file: Path, lines: Sequence[Sequence[object]]) -> str:
    """What commands print on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    arguments = [json.dumps([str(part) for part in line]) for line in lines]
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.support.terminal", str(file), *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**environment, "TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(theirs)
    printed = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux's way to say that the other end is closed.
            break
        if not part:
            break
        printed += part
    os.close(ours)
    _, said = child.communicate()
    assert child.returncode == 0, said.decode()
    return printed.decode().replace("\r\n", "\n")


def main(file: str, lines: Sequence[str]) -> None:
    """In the child."""
    from deltalens.cli import fitting
    from deltalens.cli.main import app

    tables: list[dict[str, Any]] = []
    begun = fitting.FittingTable.__init__

    def kept(self: Any, table: Any) -> None:
        tables.append(vars(table))
        begun(self, table)

    fitting.FittingTable.__init__ = kept  # type: ignore[method-assign]
    for line in lines:
        app(json.loads(line), standalone_mode=False)
    Path(file).write_text(json.dumps(tables))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
