"""What is built holds every module and every data file of the checkout, and works where it is
installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.architecture.import_graph import INSTALLED_AS, ROOT
from tests.support.training_folders import write_model

SHIPPED = {".py", ".typed", ".csv", ".json", ".yaml", ".html", ".css", ".js"}
BUILD_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: setuptools leaves its work beside the sources."""
    copy: Path = tmp_path_factory.mktemp("checkout")
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, copy)
    for folder in INSTALLED_AS:
        shutil.copytree(ROOT / folder, copy / folder)
    return copy


@pytest.fixture(scope="module")
def wheel_file(checkout: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", "wheels", "."], cwd=checkout, check=True)
    (path,) = (checkout / "wheels").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist_file(checkout: Path) -> Path:
    build = "from setuptools.build_meta import build_sdist; build_sdist('sdists')"
    (checkout / "sdists").mkdir()
    subprocess.run(
        [sys.executable, "-c", build], cwd=checkout, check=True, stdout=subprocess.DEVNULL
    )
    (path,) = (checkout / "sdists").glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_file)


def test_wheel_holds_every_module_and_data_file(wheel):
    expected = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in INSTALLED_AS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SHIPPED
    }
    assert expected - set(wheel.namelist()) == set()


def test_wheel_says_that_it_is_typed(wheel):
    assert "deltalens/py.typed" in wheel.namelist()


def test_wheel_installs_no_package_beside_deltalens(wheel):
    folders = {name.split("/")[0] for name in wheel.namelist()}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"deltalens"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base/`, and `ft/`, which differs."""
    folder = tmp_path_factory.mktemp("models")
    base = write_model(folder / "base")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    shutil.copytree(base, folder / "ft")
    model.save_pretrained(folder / "ft")
    return folder


@pytest.mark.parametrize("kind", ["wheel_file", "sdist_file"])
def test_it_works_where_it_is_installed(
    kind: str, models: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In an environment of its own, which borrows what deltalens needs."""
    built: Path = request.getfixturevalue(kind)
    place = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = str(place / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    subprocess.run(
        [*pip, "--ignore-installed", "--no-build-isolation", str(built)],
        cwd=tmp_path,
        check=True,
    )

    def deltalens(*words: str) -> str:
        return subprocess.run(
            [str(place / "bin" / "deltalens"), *words],
            cwd=models,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    where = [python, "-c", "import deltalens; print(deltalens.__file__)"]
    found = subprocess.run(where, cwd=models, check=True, capture_output=True, text=True).stdout
    assert Path(found.strip()).is_relative_to(place)
    assert "drop-study" in deltalens("--help")
    study = tmp_path / "study"
    rates = ["--rates", "0,0.5", "--fidelity-tokens", "4"]
    assert "salient" in deltalens("drop-study", "ft/", "base/", *rates, "-o", str(study))
    assert (study / "study.json").is_file()
    assert list(study.glob("*.png"))
    page = tmp_path / "page.html"
    deltalens("report", str(study), "-o", str(page))
    assert "<svg" in page.read_text(encoding="utf-8")
