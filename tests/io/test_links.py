"""A folder from a stranger: links, pipes and what others left in it are not followed, and not
waited for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import deltalens
from deltalens import DeltaLensError
from deltalens.figures import draw
from deltalens.io.files import write_whole
from deltalens.io.records import StudyFolder
from deltalens.scoring.rows import read_rows
from deltalens.training.recipe import read_recipe
from tests.support.checkpoint_files import save, tuned, weights

pytestmark = pytest.mark.bad_input

SECRET = "not yours\n"


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    base = weights()
    ft = save(tmp_path / "in" / "ft", tuned(base))
    return ft, save(tmp_path / "in" / "base", base)


@pytest.fixture
def study(models: tuple[Path, Path], tmp_path: Path) -> Path:
    """Any study will do; `inspect` needs no model."""
    deltalens.inspect(*models, tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    file = tmp_path / "victim.txt"
    file.write_text(SECRET)
    return file


def in_its_place(file: Path, kind: str, victim: Path) -> None:
    """Put a link or a pipe where a file was."""
    file.unlink(missing_ok=True)
    if kind == "link":
        file.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
@pytest.mark.parametrize("name", [".lock", "cells.jsonl", "study.json"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_record_that_is_no_plain_file_is_refused_or_replaced(
    study: Path, victim: Path, name: str, kind: str, fresh: bool
) -> None:
    spec = deltalens.load_study(study).spec
    in_its_place(study / name, kind, victim)
    said = ""
    try:
        StudyFolder.open(study, spec["kind"], spec, ["level", "name"], fresh).close()
    except DeltaLensError as error:
        said = str(error)
    assert name in said or (fresh and not said)
    assert victim.read_text() == SECRET


def test_a_folder_under_the_table_s_name_is_refused_before_anything_is_measured(
    study: Path, victim: Path
) -> None:
    spec = deltalens.load_study(study).spec
    before = (study / "cells.jsonl").read_bytes()
    in_its_place(study / "cells.csv", "folder", victim)
    with pytest.raises(DeltaLensError, match=r"cells\.csv: a folder where .* belongs; remove it"):
        StudyFolder.open(study, spec["kind"], spec, ["level", "name"])
    assert (study / "cells.jsonl").read_bytes() == before


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", ["cells.jsonl", "study.json", "cells.csv"])
def test_reading_never_waits(study: Path, victim: Path, name: str, kind: str) -> None:
    in_its_place(study / name, kind, victim)
    with pytest.raises(DeltaLensError, match=name.replace(".", r"\.")):
        deltalens.load_study(study)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.parquet", "saved/state.json", "saved/a.arrow"]
)
def test_rows_are_not_waited_for_where_a_pipe_has_no_writer(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DeltaLensError, match=r"pipe|no rows|not a Parquet file|not valid JSON"):
        read_rows(folder if "/" in name else tmp_path / name)


@pytest.mark.timeout(60)
def test_weights_are_not_waited_for(models: tuple[Path, Path]) -> None:
    (models[1] / "model.safetensors").unlink()
    os.mkfifo(models[1] / "model.safetensors")
    with pytest.raises(
        DeltaLensError, match=r"model\.safetensors: truncated, or not a safetensors file"
    ):
        deltalens.inspect(*models)


@pytest.mark.timeout(60)
def test_a_recipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml", "sft") == {}


@pytest.mark.timeout(60)
def test_rows_that_another_process_pipes_are_read() -> None:
    reading, writing = os.pipe()
    with open(writing, "w") as stream:
        stream.write("".join(f'{{"text": "row {number}"}}\n' for number in range(100)))
    try:
        assert len(read_rows(f"/dev/fd/{reading}").rows) == 100
    finally:
        os.close(reading)


@pytest.mark.parametrize("name", ["cells.csv", "anatomy.png", "anatomy.svg"])
def test_a_link_under_an_output_s_name_is_replaced_and_not_followed(
    models: tuple[Path, Path], study: Path, victim: Path, name: str
) -> None:
    draw(study)
    in_its_place(study / name, "link", victim)
    if name == "cells.csv":
        deltalens.inspect(*models, study)
    else:
        draw(study)
    assert victim.read_text() == SECRET
    assert not (study / name).is_symlink()
    assert (study / name).stat().st_size > len(SECRET)


def test_links_under_the_names_of_the_past_are_not_written_through(
    study: Path, victim: Path
) -> None:
    for name in (".cells.csv.part", ".anatomy.png.part", ".anatomy.svg.part", ".study.json.part"):
        (study / name).symlink_to(victim)
    draw(study)
    assert victim.read_text() == SECRET


def test_two_processes_that_draw_the_same_do_not_meet(study: Path) -> None:
    program = "import sys; from deltalens.figures import draw\nfor _ in range(4): draw(sys.argv[1])"
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(study)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors.decode()
    assert not list(study.glob(".*.part"))


KILLED = """
import os, sys
from pathlib import Path
from deltalens.io.{module} import {what}
with {what}(Path(sys.argv[1])) as made:
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    ("module", "what"), [("files", "writing_whole"), ("folders", "new_folder")]
)
def test_the_next_call_removes_what_a_killed_one_left(
    tmp_path: Path, module: str, what: str
) -> None:
    program = KILLED.format(module=module, what=what)
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=False)
    (tmp_path / ".other.0badcafe-1-00.part").touch()
    assert len(list(tmp_path.glob(".out.*.part"))) == 1
    write_whole(tmp_path / "out", b"whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".other.0badcafe-1-00.part",
        "out",
    ]


def test_what_a_running_process_is_writing_stays(tmp_path: Path) -> None:
    from deltalens.io.files import writing_whole

    with writing_whole(tmp_path / "out") as stream:
        stream.write(b"first")
        write_whole(tmp_path / "out", b"second")
    assert (tmp_path / "out").read_bytes() == b"first"


class TestSideFiles:
    """What `drop` copies beside the weights."""

    def dropped(self, models: tuple[Path, Path], out: Path) -> set[str]:
        deltalens.drop(*models, out)
        return {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}

    def test_a_link_out_of_the_folder_is_not_copied_and_said(
        self, models: tuple[Path, Path], tmp_path: Path, victim: Path
    ) -> None:
        (models[0] / "tokenizer.json").symlink_to(victim)
        with pytest.warns(UserWarning, match=r"tokenizer\.json: a link that points outside"):
            assert "tokenizer.json" not in self.dropped(models, tmp_path / "out")

    def test_a_link_within_the_folder_is_copied_as_a_file(
        self, models: tuple[Path, Path], tmp_path: Path
    ) -> None:
        (models[0] / "vocab.json").write_text("{}")
        (models[0] / "tokenizer.json").symlink_to("vocab.json")
        assert {"vocab.json", "tokenizer.json"} <= self.dropped(models, tmp_path / "out")
        assert not (tmp_path / "out" / "tokenizer.json").is_symlink()

    def test_what_the_hub_s_cache_links_to_is_copied(
        self, models: tuple[Path, Path], tmp_path: Path
    ) -> None:
        repository = tmp_path / "hub" / "models--org--name"
        snapshot, blobs = repository / "snapshots" / "0f", repository / "blobs"
        shutil.copytree(models[0], snapshot)
        blobs.mkdir()
        (blobs / "ab").write_text("{}")
        (snapshot / "tokenizer.json").symlink_to("../../blobs/ab")
        assert "tokenizer.json" in self.dropped((snapshot, models[1]), tmp_path / "out")

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize(
        "make",
        [
            lambda file: file.symlink_to(file.name),
            lambda file: file.symlink_to("gone"),
            lambda file: os.mkfifo(file),
            lambda file: file.symlink_to("/dev/zero"),
        ],
        ids=["circle", "nowhere", "pipe", "device"],
    )
    @pytest.mark.filterwarnings("ignore:.*a link that points outside")
    def test_what_is_no_file_is_passed_over(
        self, models: tuple[Path, Path], tmp_path: Path, make: Callable[[Path], None]
    ) -> None:
        make(models[0] / "notes.txt")
        assert "notes.txt" not in self.dropped(models, tmp_path / "out")

    @pytest.mark.filterwarnings("ignore:.*a link that points outside")
    def test_templates_that_link_to_their_own_folder_end(
        self, models: tuple[Path, Path], tmp_path: Path
    ) -> None:
        templates = models[0] / "additional_chat_templates"
        templates.mkdir()
        (templates / "tools.jinja").write_text("{{ messages }}")
        (templates / "again").symlink_to(templates)
        copied = self.dropped(models, tmp_path / "out")
        assert "additional_chat_templates/tools.jinja" in copied
        assert not any("again" in name for name in copied)
