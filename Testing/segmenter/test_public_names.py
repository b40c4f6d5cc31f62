# SPDX-License-Identifier: Apache-2.0
"""Public names of the packages."""

import ast
import runpy
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from SRCSMSegmenterLib.models import catalogue

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("SRCSMSegmenterLib", "SAMRefineLib", "srcsm_training")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there_and_listed(name):
    package = import_module(name)
    assert sorted(package.__all__) == dir(package)
    for public in package.__all__:
        assert getattr(package, public).__name__ == public
    with pytest.raises(AttributeError, match=f"'{name}' has no attribute 'absent'"):
        _ = package.absent


def test_a_package_imports_nothing_before_a_name_is_asked_for():
    code = (
        "import sys, SRCSMSegmenterLib, SAMRefineLib, srcsm_training; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_python_that_is_too_old_is_told_which_slicer_is_needed(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 10, "final", 0))
    with pytest.raises(ImportError, match=r"which 3D Slicer 5\.12 .* have; this is Python 3\.9\."):
        runpy.run_path(REPOSITORY / "SRCSMSegmenter" / "SRCSMSegmenterLib" / "__init__.py")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_has_the_mark_of_types(name):
    assert (Path(import_module(name).__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_see_the_same_names(name):
    package = import_module(name)
    tree = ast.parse(Path(package.__file__).read_text("utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    [block] = [node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.asname: line.module for line in block.body for alias in line.names}
    assert seen == package.PUBLIC


def test_a_wheel_has_its_models_beside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "python3.11" / "site-packages" / "SRCSMSegmenterLib"
    monkeypatch.delenv("SRCSM_MODELS", raising=False)
    monkeypatch.setattr(catalogue, "__file__", str(package / "models" / "catalogue.py"))
    (package / "shipped").mkdir(parents=True)
    assert catalogue.shipped_models_folder() == package / "shipped"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    settings = project["tool"]["setuptools"]
    name = "SRCSMSegmenterLib.shipped"
    assert name in settings["packages"]
    assert settings["package-data"][name] == ["**/*"]
    assert (REPOSITORY / settings["package-dir"][name] / "abdomen-ct" / "SHA256SUMS").is_file()
