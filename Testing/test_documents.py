# SPDX-License-Identifier: Apache-2.0
"""README files, BENCHMARKS.md, CITATION.cff: their commands, links, files and numbers are true."""

import ast
import importlib.util
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from srcsm_training.cli.main import make_parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "BENCHMARKS.md", *ROOT.glob("README.md"), *ROOT.glob("*/README.md"))
)
START = re.compile(
    r"^(?:accelerate launch --num_processes \d+ )?"
    r"(?:srcsm|training/train.py|-m srcsm_training) (?!\.\.\.|COMMAND)"
)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code_of(document: str) -> list[str]:
    """The lines of code blocks, fenced or indented, with continued lines joined."""
    lines, fenced = [], False
    for line in text_of(document).splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def commands_of(document: str) -> list[list[str]]:
    """The arguments of every call of `srcsm`, through accelerate too."""
    commands = []
    for line in code_of(document):
        if START.match(line) and not line.endswith("..."):
            words = shlex.split(START.sub("", line))
            commands.append(["train", *words] if "training/train.py" in line else words)
    return commands


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_parses(document):
    for command in commands_of(document):
        assert make_parser().parse_args(command).command == command[0]


def test_the_commands_are_found():
    """The check above could not fail otherwise."""
    found = {document: len(commands_of(document)) for document in DOCUMENTS}
    assert found["README.md"] > 7
    assert found["training/README.md"] > 15
    assert found["BENCHMARKS.md"] > 8
    assert found["SAMRefine/README.md"] == 4
    assert ["train", "--data"] in [command[:2] for command in commands_of("training/README.md")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_module_that_a_command_runs_is_there(document):
    modules = re.findall(r"python -m (srcsm_training[\w.]*)", "\n".join(code_of(document)))
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    scripts = re.findall(r"python ((?:training|Testing)/\S+\.py)", text_of(document))
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_into_the_repository_leads_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text_of(document))
    for link in ("".join(pair) for pair in links):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_file_that_a_document_names_is_there():
    tops = [folder for folder in ROOT.iterdir() if folder.is_dir() and folder.name[0] != "."]
    paths = [path.as_posix() for top in tops for path in top.rglob("*.*")]
    for document in DOCUMENTS:
        for name in re.findall(r"`([\w/]+/(?!NAME)\w+\.(?:py|yaml|ui))`", text_of(document)):
            assert any(path.endswith(f"/{name}") for path in paths), f"{document}: {name}"


def test_the_numbers_of_the_readmes_results_stand_in_the_benchmarks():
    results = text_of("README.md").partition("## Results")[2].partition("\n## ")[0]
    numbers = set(re.findall(r"\b0\.\d{3}\b", results))
    assert len(numbers) > 12
    assert numbers - set(re.findall(r"\b0\.\d{3}\b", text_of("BENCHMARKS.md"))) == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_is_python(document):
    for block in re.findall(r"^```py(?:thon)?\n(.*?)^```", text_of(document), re.M | re.S):
        ast.parse(block)


def test_the_citation_names_the_software_and_the_papers():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    papers = {entry["url"].rpartition("/")[2] for entry in citation["references"]}
    assert papers == {"2512.01510", "2411.05223", "2401.02076"}
    assert all(paper in text_of("README.md") for paper in papers)


def test_the_bibtex_entries_are_those_of_the_citation_file():
    references = yaml.safe_load(text_of("CITATION.cff"))["references"]
    (block,) = re.findall(r"^```bibtex\n(.*?)^```", text_of("README.md"), re.M | re.S)
    entries = re.split(r"^@", block, flags=re.M)[1:]
    for entry, reference in zip(entries, references, strict=True):
        fields = dict(re.findall(r"^ +(\w+) += \{(.*)\},?$", entry, re.M))
        assert fields["title"] == reference["title"]
        assert fields["year"] == str(reference["year"])
        assert fields.get("doi") == reference.get("doi")
        names = fields["author"].split(" and ")
        assert len(names) == len(reference["authors"])
        for name, author in zip(names, reference["authors"], strict=True):
            family = re.sub(r"[{}\\]", "", name).rpartition(",")[0]
            letters = re.sub(r"[^\x00-\x7f]", ".", author["family-names"])
            assert re.fullmatch(letters.replace(".", r"\W?(v )?\w"), family), (family, author)


@pytest.mark.slow
@pytest.mark.needs_slicer
def test_the_scripts_for_slicer_run(tmp_path, monkeypatch):
    """From the scan in a file to the spleen refined in a box, as the READMEs of the modules say."""
    import slicer
    from qt_host import slicer_with_qt

    from SRCSMSegmenterLib.phantom.scans import make_case
    from SRCSMSegmenterLib.volume_io import write_volume

    image, _ = make_case(7, "MR")
    (tmp_path / "scans").mkdir()
    write_volume(tmp_path / "scans" / "mr.nii.gz", image)
    packaging = SimpleNamespace(load_requirements=lambda path: [], pip_check=lambda one: True)
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    names: dict[str, object] = {"slicer": slicer}
    with slicer_with_qt(tmp_path / "settings.ini", "SRCSMSegmenter", "SAMRefine"):
        volume = slicer.util.addVolumeFromArray(image.array, image.geometry.affine, "mr")
        monkeypatch.setattr(slicer.util, "loadVolume", lambda path: volume, raising=False)
        monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: dict(os.environ))
        for document in ("SRCSMSegmenter/README.md", "SAMRefine/README.md"):
            script = re.search(r"^```py\n(.*?)^```", text_of(document), re.M | re.S)[1]
            exec(compile(script.replace("/data", str(tmp_path)), document, "exec"), names)
            names["run"].wait()
            assert names["run"].error is None
        names["session"].close()
        names["logic"].stop()
    assert (tmp_path / "labels" / "mr.seg.nrrd").is_file()
