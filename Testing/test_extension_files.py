# SPDX-License-Identifier: Apache-2.0
"""What Slicer's build, its Extensions Index and its start-up ask of the files."""

import ast
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from SRCSMSegmenterLib.models.catalogue import find_bundles, shipped_models_folder

ROOT = Path(__file__).resolve().parents[1]
MODULES = [folder for folder in ROOT.iterdir() if (folder / f"{folder.name}.py").is_file()]
IN_SLICER = {"slicer", "vtk", "qt", "ctk", "numpy"}
"""What Slicer has when it loads all modules at its start."""

EXTENSION = dict(
    re.findall(r'^set\(EXTENSION_(\w+) "(.*)"\)$', (ROOT / "CMakeLists.txt").read_text(), re.M)
)


def source_of(name: str) -> Path | None:
    """The file of a module of our own, by its dotted name."""
    for folder in MODULES:
        path = folder / name.replace(".", "/")
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def package_of(path: Path) -> list[str]:
    """The names of the packages that a file lies in, the outermost first."""
    return [f.name for f in reversed(path.parents) if (f / "__init__.py").is_file()]


def imported(path: Path) -> set[str]:
    """Dotted names of what a file imports when it is imported, in `try` and `if` too, but for
    `if TYPE_CHECKING`."""
    names, package = set(), package_of(path)
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return names


def imported_in_the_end(path: Path) -> set[str]:
    """The packages that are not ours which importing a file imports, through ours too."""
    found, seen, waiting = set(), {path}, [path]
    while waiting:
        for name in imported(waiting.pop()):
            ours = source_of(name)
            if ours is None and source_of(name.rpartition(".")[0]) is None:
                found.add(name.partition(".")[0])
            elif ours is not None and ours not in seen:
                seen.add(ours)
                waiting.append(ours)
    return found


@pytest.mark.parametrize(
    "path",
    sorted(
        path
        for folder in MODULES
        for path in (
            folder / f"{folder.name}.py",
            *folder.glob("*Lib/scene/*.py"),
            *folder.glob("*Lib/panel/*.py"),
        )
    ),
    ids=lambda path: path.name,
)
def test_what_slicer_loads_imports_only_what_slicer_has(path):
    # SciPy and SimpleITK come with Slicer too, but are for when they are needed, not its start-up.
    allowed = IN_SLICER | set(sys.stdlib_module_names)
    assert imported_in_the_end(path) <= allowed


def test_imports_are_found_wherever_they_hide(tmp_path):
    """The check above could not fail otherwise."""
    file = tmp_path / "module.py"
    file.write_text(
        "import os\ntry:\n    import torch\nexcept ImportError:\n    pass\n"
        "class A:\n    import monai.losses\ndef f():\n    import pandas\n"
        "if TYPE_CHECKING:\n    import scipy\nelse:\n    import tqdm\n"
    )
    assert imported_in_the_end(file) == {"os", "torch", "monai", "tqdm"}


def listed(folder: Path, variable: str) -> set[str]:
    text = (folder / "CMakeLists.txt").read_text()
    block = re.search(rf"set\({variable}\s+(.*?)\)", text, re.S)[1]
    return set(block.replace("${MODULE_NAME}", folder.name).split())


@pytest.mark.parametrize("folder", MODULES, ids=lambda folder: folder.name)
def test_cmake_lists_every_file_to_be_packaged(folder):
    def tree(*patterns):
        return {p.relative_to(folder).as_posix() for each in patterns for p in folder.glob(each)}

    assert listed(folder, "MODULE_PYTHON_SCRIPTS") == tree("*.py", "*Lib/**/*.py")
    everything = {path for path in tree("Resources/**/*") if (folder / path).is_file()}
    drawn_from = {path for path in everything if path.endswith(".svg")}
    assert listed(folder, "MODULE_PYTHON_RESOURCES") == everything - drawn_from


def test_every_module_is_built_and_every_test_of_it_registered():
    top = (ROOT / "CMakeLists.txt").read_text()
    for folder in MODULES:
        assert f"add_subdirectory({folder.name})" in top
        tests = {path.name for path in (folder / "Testing").glob("*.py")}
        registered = (folder / "Testing" / "CMakeLists.txt").read_text()
        assert set(re.findall(r"slicer_add_python_unittest\(SCRIPT (\S+)\)", registered)) == tests


def test_the_extension_describes_itself_on_single_lines():
    needed = {"HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS"}
    assert EXTENSION.keys() == needed | {"DEPENDS"}
    lines = (ROOT / "CMakeLists.txt").read_text().split()
    assert lines[-2:] == [
        "include(${Slicer_EXTENSION_GENERATE_CONFIG})",
        "include(${Slicer_EXTENSION_CPACK})",
    ]


def test_the_index_entry_belongs_to_the_extension():
    project = re.search(r"^project\((\w+)\)", (ROOT / "CMakeLists.txt").read_text(), re.M)[1]
    entry = json.loads((ROOT / f"{project}.json").read_text())
    repository = entry["scm_url"].removesuffix(".git")
    assert repository == EXTENSION["HOMEPAGE"]
    assert repository.rpartition("/")[2] == f"Slicer{project}"
    assert entry["category"] == EXTENSION["CATEGORY"]
    assert entry["build_dependencies"] == EXTENSION["DEPENDS"].split()


def test_the_index_entry_has_only_keys_and_values_that_the_index_knows():
    """slicer-extension-catalog-entry-schema-v1.0.1.json of Slicer."""
    entry = json.loads((ROOT / "SRCSM.json").read_text())
    assert entry["$schema"].endswith("/slicer-extension-catalog-entry-schema-v1.0.1.json#")
    optional = {"scm_revision", "scm_type", "build_dependencies", "build_subdirectory", "enabled"}
    assert {"$schema", "category", "scm_url"} <= entry.keys()
    assert entry.keys() <= {"$schema", "category", "scm_url", "tier"} | optional
    assert entry["tier"] in (1, 3, 5)


def test_the_description_names_the_licences_of_code_and_weights_and_patents():
    description = EXTENSION["DESCRIPTION"]
    assert ";" not in description  # which would end an element of a list in CMake
    cards = [*ROOT.glob("Resources/Models/*/README.md"), *ROOT.glob("Resources/Models/*/docs/*.md")]
    licences = {re.search(r"^- Licence: (CC [\w-]+ [\d.]+)", c.read_text(), re.M)[1] for c in cards}
    assert licences == {"CC BY 4.0", "CC BY-SA 4.0"}
    for words in (*licences, "Apache-2.0", "patents", "Research use only"):
        assert words in description


def test_the_extensions_icon_is_a_file_of_the_repository():
    path = EXTENSION["ICONURL"].partition("/main/")[2]
    assert (ROOT / path).is_file()


@pytest.mark.parametrize(
    "svg", sorted(ROOT.glob("*/Resources/Icons/*.svg")) + sorted(ROOT.glob("Resources/Icons/*.svg"))
)
def test_icons_are_128_pixels_square(svg):
    header = svg.with_suffix(".png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:24]) == (128, 128)


SLICER_FOR_CMAKE = """
# What our CMake files ask of Slicer's build, copying files as ctkMacroCompilePythonScript does.
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/empty.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${Slicer_USE_FILE})
set(Slicer_EXTENSION_CPACK ${Slicer_USE_FILE})
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.12/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.12/qt-scripted-modules)
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  foreach(file ${MODULE_SCRIPTS} ${MODULE_RESOURCES})
    get_filename_component(folder ${file} DIRECTORY)
    install(FILES ${file} DESTINATION ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}/${folder})
  endforeach()
endmacro()
macro(slicer_add_python_unittest)
  cmake_parse_arguments(TEST "" "SCRIPT" "" ${ARGN})
  if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${TEST_SCRIPT})
    message(FATAL_ERROR "no ${TEST_SCRIPT}")
  endif()
endmacro()
"""


@pytest.mark.skipif(shutil.which("cmake") is None, reason="CMake is not installed")
def test_the_installed_extension_has_its_models_and_finds_them(tmp_path):
    slicer, build, installed = (tmp_path / name for name in ("slicer", "build", "an extension"))
    slicer.mkdir()
    (slicer / "empty.cmake").write_text("")
    (slicer / "SlicerConfig.cmake").write_text(SLICER_FOR_CMAKE)
    for command in (
        ["cmake", "-S", ROOT, "-B", build, f"-DSlicer_DIR={slicer}", "-DBUILD_TESTING=ON"],
        ["cmake", "--install", build, "--prefix", installed],
    ):
        subprocess.run(command, check=True, capture_output=True)
    modules = installed / "lib" / "Slicer-5.12" / "qt-scripted-modules"
    code = (
        "from SRCSMSegmenterLib.models.catalogue import find_bundles, shipped_models_folder\n"
        "print(shipped_models_folder(), *[b.name for b in find_bundles(shipped_models_folder())])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=modules,
        env={"PYTHONPATH": str(modules)},
    )
    names = " ".join(folder.name for folder in find_bundles(shipped_models_folder()))
    assert found.stdout.strip() == f"{modules / 'Resources' / 'Models'} {names}"
    in_build = build / "lib" / "Slicer-5.12" / "qt-scripted-modules" / "Resources" / "Models"
    assert (in_build / "abdomen-ct" / "SHA256SUMS").is_file()


def test_files_of_the_modules_do_not_overwrite_each_other():
    """Installed, all modules lie in one folder."""
    names = [
        path
        for folder in MODULES
        for path in (
            *listed(folder, "MODULE_PYTHON_SCRIPTS"),
            *listed(folder, "MODULE_PYTHON_RESOURCES"),
        )
    ]
    assert len(names) == len(set(names))
