"""Every command that README and the pages show is run, or stands in a list with what it needs."""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest
import yaml

from deltalens.demo import landscape
from tests.architecture.import_graph import ROOT
from tests.support.demo import TINY, shortened, tiny_models
from tests.support.shown_commands import (
    PAGES,
    Shown,
    build_page_demo,
    failures_of,
    runs_here,
    shown_on,
)

LIST = Path(__file__).with_name("not_run.yaml")


def listed(part: str) -> dict[str, str]:
    """A command -> what it needs (`not_run`), or whose tests run it (`elsewhere`)."""
    return cast(dict[str, str], yaml.safe_load(LIST.read_text(encoding="utf-8"))[part])


def unaccounted(shown: Sequence[Shown], not_here: Mapping[str, str]) -> list[str]:
    """What no test runs and no list names."""
    return sorted({str(each) for each in shown if not runs_here(each)} - {*not_here})


def stale(shown: Sequence[Shown], not_here: Mapping[str, str]) -> list[str]:
    """What a list names and no page shows."""
    return sorted({*not_here} - {str(each) for each in shown})


NOT_HERE = {**listed("not_run"), **listed("elsewhere")}
ALL = [each for page in PAGES for each in shown_on(page)]
RUNNABLE = [
    page
    for page in PAGES
    if any(str(each) not in NOT_HERE and runs_here(each) for each in shown_on(page))
]


def test_every_command_is_run_or_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert unaccounted(ALL, NOT_HERE) == []
    shown = {str(each) for each in ALL}
    needs = Counter(listed("not_run").values())
    with capsys.disabled():
        print(
            f"\n{len(shown)} commands on {len(PAGES)} pages: {len(shown - {*NOT_HERE})} are run on"
            f" the demo's models, {len(listed('elsewhere'))} by other tests,"
            f" {needs.total()} are not run"
        )
        print("\n".join(f"{count:4} need {need}" for need, count in needs.most_common()))


def test_no_entry_of_the_list_is_stale() -> None:
    assert stale(ALL, NOT_HERE) == []


def test_nothing_is_in_both_parts() -> None:
    assert {*listed("not_run")} & {*listed("elsewhere")} == set()


def test_the_tests_that_run_it_elsewhere_exist() -> None:
    assert [file for file in listed("elsewhere").values() if not (ROOT / file).is_file()] == []


def test_a_planted_command_is_found() -> None:
    here, there = Shown(("deltalens", "env")), Shown(("docker", "run", "it"))
    assert unaccounted([here, there], {}) == ["docker run it"]
    assert unaccounted([here, there], {"docker run it": "docker"}) == []
    assert stale([here], {"docker run it": "docker"}) == ["docker run it"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_page_demo(tmp_path_factory.mktemp("demo"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_work(
    page: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models(monkeypatch)
    small = functools.partial(landscape.build_landscape, recipe=TINY)
    monkeypatch.setattr(landscape, "build_landscape", small)
    shortened(monkeypatch, "landscape", {"grid": "3x3"})
    few = {"steps": 2, "eval_every": 1, "seeds": 1, "jobs": 1, "learning_rate": 1e-2}
    few |= {"setting": {"like_lora": 2, "targets": "attention", "examples": 8}, "refresh_every": 2}
    shortened(monkeypatch, "speft", few)
    folder = shutil.copytree(demo, tmp_path / "demo")
    assert [*failures_of(page, [*NOT_HERE], folder)] == []


@pytest.mark.slow
def test_a_planted_command_fails(demo: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\ndeltalens env\ndeltalens inspect ft/ none/ -o a/\npython no.py\n```\n")
    folder = shutil.copytree(demo, tmp_path / "demo")
    first, second = failures_of(page, [], folder)
    assert first.startswith("deltalens inspect ft/ none/ -o a/\n")
    assert second.startswith("python no.py\n")
