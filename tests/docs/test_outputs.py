"""What pages show as output was printed, and names nothing of one machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.import_graph import ROOT
from tests.support.shown_commands import docs_module

QUICKSTART = sorted((ROOT / "docs" / "quickstart").glob("*.md"))
OUTPUTS = docs_module("build_outputs")


def test_a_page_is_written_anew(tmp_path: Path) -> None:
    page = (
        '```python title="two.py"\nprint("of the file")\n```\n\n```sh\npython two.py\n```\n\n'
        "```text\nold\n```\n\n```sh\necho 1; echo took 2.5 s\n```\n\n"
        "<!-- last 1 lines -->\n```text\nold\n```\n\n```sh\ntouch made\n```\n"
    )
    now = OUTPUTS.written(page, tmp_path)
    assert re.findall(r"^```text\n(.*?)^```$", now, re.MULTILINE | re.DOTALL) == [
        "of the file\n",
        "[...]\ntook ... s\n",
    ]
    assert OUTPUTS.written(now, tmp_path) == now
    assert (tmp_path / "made").is_file()


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="false"):
        OUTPUTS.written("```sh\nfalse\n```\n", tmp_path)


def test_a_folder_of_this_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names"):
        OUTPUTS.written("```sh\npwd\n```\n\n```text\n```\n", tmp_path)


@pytest.mark.parametrize("page", QUICKSTART, ids=lambda page: page.stem)
def test_every_output_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "```text\n```" not in text
    assert len(re.findall(r"^```text$", text, re.MULTILINE)) >= 5


def test_there_is_a_page_for_each_way_in() -> None:
    assert [page.stem for page in QUICKSTART] == ["checkpoints", "sparse", "training"]
