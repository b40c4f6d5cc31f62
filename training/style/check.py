# SPDX-License-Identifier: Apache-2.0
"""Check of restyled slices: that the style moved and the anatomy stayed (Chen et al. 2025).

A restyled slice fails if it still looks like its source (the intervention failed) or if its picture
no longer follows its mask (the ControlNet failed). Both are measured on every slice;
those below a threshold are set aside: they stay on disk and in the manifest, with the reason, and
nobody trains on them.

check.json            medians for each style, distances between styles, what is wrong with the set
check.csv             the numbers of every slice
contact_sheet.png     sources and their styles with the masks' outlines, the worst at the bottom
check.partial.json    while a check goes on: the numbers so far
"""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from SRCSMSegmenterLib.errors import BundleError, DatasetError
from SRCSMSegmenterLib.models.bundle import ModelBundle
from SRCSMSegmenterLib.terminology import segment_for

from ..engine.limits import Limits
from .config import StyleConfig
from .measures import Numbers, measure, network_dice, within_source
from .report import contact_sheet, summarise, write_report
from .slices import (
    Slice,
    SliceSet,
    StageResult,
    read_slices,
    write_bytes,
    write_manifest,
)

PARTIAL = "check.partial.json"


def check(
    folder: Path,
    config: StyleConfig,
    *,
    out: Path | None = None,
    network: ModelBundle | None = None,
    device: str = "auto",
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> StageResult:
    """Measure every restyled slice, set the bad ones aside, and write the report.

    Slices that an earlier check set aside are judged anew.

    Args:
        folder: of a restyled set.
        out: for the report; the set's folder by default.
        network: trained on the source; its Dice on every slice is measured too.
        progress: called as progress(done, total, name) after every source slice.

    Raises:
        DatasetError: no restyled set, an incomplete one, one whose files changed, or a mask with
            labels that the manifest does not name.
        BundleError: the network has other labels.
        StyleError: the report cannot be written.
    """
    time_is_up = limits.start()
    restyled = read_slices(folder)
    if not restyled.source:
        raise DatasetError(
            f"{folder} holds no restyled slices; give the folder that srcsm style swap wrote."
        )
    source = read_slices(restyled.folder / restyled.source)
    if network:
        _check_labels(network, restyled)
    out = out or restyled.folder
    groups: dict[str, list[Slice]] = defaultdict(list)
    for s in restyled.slices:
        groups[s.source].append(s)
    sources = {s.name: s for s in source.slices if s.name in groups}
    if strange := sorted(groups.keys() - sources.keys()):
        raise DatasetError(
            f"{folder} restyles {strange[0]}, which {source.folder} does not have; swap anew."
        )
    made = _read_partial(out, network, restyled)
    for done, (name, styles) in enumerate(groups.items()):
        if time_is_up():
            _write_partial(out, network, restyled, made)
            return StageResult(done, len(groups), None)
        if any(s.name not in made for s in styles):
            measured = measure(source, sources[name], restyled, styles)
            if network:
                measured = [
                    replace(n, dice=network_dice(restyled, s, network, device))
                    for n, s in zip(measured, styles, strict=True)
                ]
            made |= {n.name: n for n in measured}
        progress(done + 1, len(groups), name)
    reasons = {name: numbers.reason(config.check) for name, numbers in made.items()}
    judged = replace(
        restyled, slices=tuple(replace(s, rejected=reasons[s.name]) for s in restyled.slices)
    )
    report = summarise(judged, list(made.values()), config.check, within_source(source))
    write_report(out, report, list(made.values()), reasons)
    contact_sheet(out / "contact_sheet.png", source, judged, made)
    write_manifest(judged)
    (out / PARTIAL).unlink(missing_ok=True)
    limits.say(f"{len(judged.kept())} of {len(judged.slices)} slices are kept.")
    for line in report["faults"]:
        limits.say(f"Warning: {line}")
    return StageResult(len(groups), len(groups), out)


def _check_labels(network: ModelBundle, restyled: SliceSet) -> None:
    described = tuple(segment_for(name, value) for name, value in restyled.labels.items())
    if network.description.labels != described:
        names = ", ".join(label.name for label in network.description.labels)
        raise BundleError(
            f"The network {network.description.name} finds {names}, the slices show "
            f"{', '.join(restyled.labels)}; give one that was trained on their dataset."
        )


def _read_partial(out: Path, network: ModelBundle | None, restyled: SliceSet) -> dict[str, Numbers]:
    """Read the numbers of a check of the same set that was stopped."""
    try:
        content = json.loads((out / PARTIAL).read_text(encoding="utf-8"))
        if content["of"] != _identity(network, restyled):
            return {}
        return {n["name"]: Numbers(**n) for n in content["numbers"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _write_partial(
    out: Path, network: ModelBundle | None, restyled: SliceSet, made: dict[str, Numbers]
) -> None:
    content = {"of": _identity(network, restyled), "numbers": [asdict(n) for n in made.values()]}
    write_bytes(out / PARTIAL, json.dumps(content).encode())


def _identity(network: ModelBundle | None, restyled: SliceSet) -> list[str]:
    """List what the numbers depend on: SHA-256 of the network, the pictures and the masks."""
    sums = [digest for s in restyled.slices for digest in (s.image_sha256, s.mask_sha256)]
    return [network.identity if network else "", *sums]
