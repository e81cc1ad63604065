"""Every `deltalens` command of README and the quickstart runs where only outputs can be written.

The root file system is read-only, there is no home, no temporary folder and no place for a cache;
the working directory is a tmpfs. A mount namespace of its own makes it so, which takes root.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deltalens.demo import build_demo
from tests.architecture.import_graph import ROOT
from tests.architecture.test_readme import typed_commands
from tests.support.demo import TINY
from tests.support.shown_commands import QUICK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BEFORE = """
deltalens train sft base/ --train-data train.jsonl --steps 2 --probe -o probed/ -q
mkdir runs
for run in a trainer loop; do cp -r probed/run runs/$run; done
"""
"""What the examples of `monitor` begin with."""
CAGE = """
set -e
mount --make-rprivate /
root=$(mktemp -d)
trap 'umount -R "$root"; rmdir "$root"' EXIT
mount --bind / "$root"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
mount -t tmpfs tmpfs "$root/mnt"
cp -r "$1"/. "$root/mnt"
chroot "$root" /usr/bin/env -i PATH="$2:/usr/bin:/bin" bash /mnt/script
"""


def caged() -> bool:
    """Whether this machine lets us have such a namespace."""
    if os.getuid() != 0 or not Path("/mnt").is_dir():
        return False
    tried = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True)
    return tried.returncode == 0


def script() -> str:
    """The commands, each followed by its exit status."""
    lines = ["cd /mnt", *BEFORE.strip().splitlines()]
    pages = [ROOT / "README.md", *sorted((ROOT / "docs" / "quickstart").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for words in typed_commands(text):
        if words[0] != "deltalens":
            continue
        name = " ".join(words[1:3]) if words[1] == "sweep" else words[1]
        typed = shlex.join([*words, *QUICK.get(name, [])])
        if "-o" in words:
            lines.append(f"rm -rf {words[words.index('-o') + 1]}")
        lines += [f"{typed} > out 2> err; echo $? {shlex.quote(typed)}; cat err"]
    return "\n".join([*lines, "find . -name '*.part'"])


@pytest.mark.skipif(not caged(), reason="needs root, and mount namespaces")
def test_every_command_of_the_first_pages_runs_on_a_read_only_system(tmp_path: Path) -> None:
    paths = build_demo(tmp_path / "demo", recipe=replace(TINY, blocks=3))
    for file in (paths.train, paths.test):
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:24]))
    (paths.folder / "script").write_text(script())
    (tmp_path / "cage").write_text(CAGE)
    cage = ["bash", str(tmp_path / "cage"), str(paths.folder), str(Path(sys.executable).parent)]
    run = subprocess.run(["unshare", "-m", *cage], capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines()
    ended = [line for line in lines if line[0:1].isdigit() and "deltalens" in line]
    wanted = script().count("echo $?")
    assert [line for line in ended if not line.startswith("0 ")] == [], run.stdout + run.stderr
    assert len(ended) == wanted > 20
    assert "Traceback" not in run.stdout
    assert "MPLCONFIGDIR" not in run.stdout
    assert not [line for line in lines if line.endswith(".part")]
    warnings = [line for line in lines if "compiled loops cannot be stored" in line]
    assert 0 < len(warnings) <= wanted
