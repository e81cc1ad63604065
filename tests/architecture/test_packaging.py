"""A wheel holds every module and every data file of the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.architecture.import_graph import INSTALLED_AS, ROOT

SHIPPED = {".py", ".typed", ".csv", ".json", ".yaml", ".html", ".css", ".js"}
BUILD_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy: setuptools leaves its work beside the sources."""
    copy: Path = tmp_path_factory.mktemp("checkout")
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, copy)
    for folder in INSTALLED_AS:
        shutil.copytree(ROOT / folder, copy / folder)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", "wheels", "."], cwd=copy, check=True)
    (path,) = (copy / "wheels").glob("*.whl")
    return zipfile.ZipFile(path)


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
