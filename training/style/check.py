# SPDX-License-Identifier: Apache-2.0
"""Did the styles move, and did the anatomy stay? (Chen et al. 2025)

A restyled slice fails where it still looks like its source (the intervention failed) or where its
picture no longer follows its mask (the ControlNet failed). Both are measured on every slice;
those below a threshold are set aside: they stay on disk and in the manifest, with the reason, and
nobody trains on them.

check.json            medians for each style, distances between styles, what is wrong with the set
check.csv             the numbers of every slice
contact_sheet.png     sources and their styles with the masks' outlines, the worst at the bottom
check.partial.json    while a check goes on: the numbers so far
"""

import csv
import io
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt, gaussian_gradient_magnitude
from scipy.stats import rankdata

from SRCSMSegmenterLib.components import dice
from SRCSMSegmenterLib.errors import BundleError, DatasetError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.models.bundle import ModelBundle
from SRCSMSegmenterLib.terminology import segment_for

from ..plots import draw_outlined, save
from .config import CheckConfig, StyleConfig
from .slices import (
    Slice,
    SliceSet,
    StageResult,
    read_manifest,
    read_picture,
    read_slices,
    write_bytes,
    write_manifest,
)

SMALLEST = 20
"""Pixels from which on an organ is judged, and edge pixels from which on an outline is."""

ROWS = 5
"""Source slices in either half of the contact sheet."""

PARTIAL = "check.partial.json"


@dataclass(frozen=True)
class Numbers:
    """What is measured on a restyled slice.

    Attributes:
        name, source, style: of the slice.
        organs: organ -> `histogram_distance` to the source slice within it.
        picture: the same over the whole picture.
        between: other style of the same source slice -> mean of the organs' distances to it.
        edges: `boundary_agreement` of picture and mask; nan where the mask has no outline.
        source_edges: that of the source slice.
        dice: mean Dice over the organs of the source-trained network on this picture, nan without.
    """

    name: str
    source: str
    style: str
    organs: dict[str, float] = field(default_factory=dict)
    picture: float = math.nan
    between: dict[str, float] = field(default_factory=dict)
    edges: float = math.nan
    source_edges: float = math.nan
    dice: float = math.nan

    @property
    def moved(self) -> float:
        """How far the style moved: the mean over the organs, nan without any."""
        return _mean(self.organs.values())

    def reason(self, config: CheckConfig) -> str:
        """Why the slice is set aside, or nothing."""
        if not self.organs or math.isnan(self.edges):
            return "no organ to judge it by"
        if self.moved < config.moved:
            return f"style unchanged: moved {self.moved:.3f} of {config.moved:g}"
        if self.edges < config.edges:
            return f"anatomy not kept: edges {self.edges:.2f} of {config.edges:g}"
        if self.dice < config.dice:
            return f"anatomy not kept: Dice {self.dice:.2f} of {config.dice:g}"
        return ""


def check(
    folder: Path,
    config: StyleConfig,
    *,
    out: Path | None = None,
    network: ModelBundle | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
    max_minutes: float = math.inf,
    stop_requested: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
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
    started = time.monotonic()
    found = read_slices(folder)
    if not found.source:
        raise DatasetError(
            f"{folder} holds no restyled slices; give the folder that srcsm style swap wrote."
        )
    source = read_slices(found.folder / found.source)
    if network:
        _check_labels(network, found)
    out = out or found.folder
    groups: dict[str, list[Slice]] = defaultdict(list)
    for s in found.slices:
        groups[s.source].append(s)
    sources = {s.name: s for s in source.slices if s.name in groups}
    if strange := sorted(groups.keys() - sources.keys()):
        raise DatasetError(
            f"{folder} restyles {strange[0]}, which {source.folder} does not have; swap anew."
        )
    made = _read_partial(out, network, found)
    for done, (name, styles) in enumerate(groups.items()):
        if time.monotonic() - started > max_minutes * 60 or stop_requested():
            _write_partial(out, network, found, made)
            return StageResult(done, len(groups), None)
        if any(s.name not in made for s in styles):
            measured = measure(source, sources[name], found, styles)
            if network:
                measured = [
                    replace(n, dice=_network_dice(found, s, network, device))
                    for n, s in zip(measured, styles, strict=True)
                ]
            made |= {n.name: n for n in measured}
        progress(done + 1, len(groups), name)
    reasons = {name: numbers.reason(config.check) for name, numbers in made.items()}
    judged = replace(
        found, slices=tuple(replace(s, rejected=reasons[s.name]) for s in found.slices)
    )
    report = summarise(judged, list(made.values()), config.check, within_source(source))
    _write_report(out, report, list(made.values()), reasons)
    contact_sheet(out / "contact_sheet.png", source, judged, made)
    write_manifest(judged)
    (out / PARTIAL).unlink(missing_ok=True)
    say(f"{len(judged.kept())} of {len(judged.slices)} slices are kept.")
    for line in report["faults"]:
        say(f"Warning: {line}")
    return StageResult(len(groups), len(groups), out)


def measure(
    source: SliceSet, original: Slice, found: SliceSet, styles: Sequence[Slice]
) -> list[Numbers]:
    """The numbers of all restyled slices of one source slice, but for the network's Dice.

    Raises:
        DatasetError: the mask holds labels that the manifest does not name.
    """
    mask = read_picture(source, original.mask)
    if unknown := sorted(set(np.unique(mask).tolist()) - {0, *source.labels.values()}):
        raise DatasetError(
            f"{source.folder / original.mask} holds the labels {unknown}, which its manifest does "
            "not name; prepare the slices anew."
        )
    before = read_picture(source, original.image)
    pictures = {s.name: read_picture(found, s.image) for s in styles}
    organs = {name: mask == value for name, value in source.labels.items()}
    organs = {name: where for name, where in organs.items() if where.sum() >= SMALLEST}
    source_edges = boundary_agreement(before, mask)

    def distances(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        return {name: histogram_distance(a[w], b[w]) for name, w in organs.items()}

    return [
        Numbers(
            name=s.name,
            source=original.name,
            style=s.style,
            organs=distances(before, pictures[s.name]),
            picture=histogram_distance(before, pictures[s.name]),
            between={
                other.style: _mean(distances(pictures[s.name], pictures[other.name]).values())
                for other in styles
                if other.style != s.style
            },
            edges=boundary_agreement(pictures[s.name], mask),
            source_edges=source_edges,
        )
        for s in styles
    ]


def histogram_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Earth mover's distance of two sets of grey values 0 to 255, as a share of that range."""
    cumulative = [
        np.bincount(values.ravel(), minlength=256).cumsum() / values.size
        for values in (first, second)
    ]
    return float(np.abs(cumulative[0] - cumulative[1])[:-1].sum() / 255)


def boundary_agreement(picture: np.ndarray, mask: np.ndarray) -> float:
    """How well the mask's outlines lie where the picture has edges.

    The chance that the picture's gradient is larger at a pixel of an outline than at one of the
    band around the outlines: 1 is perfect, 0.5 chance. Blur and band go by the picture's size; in
    one of 96 pixels the gradient has a sigma of 0.7 pixels, and the band reaches from 1.5 to 5.

    Args:
        picture: (rows, columns) uint8.
        mask: (rows, columns) labels.

    Returns:
        nan where there is too little outline to tell.
    """
    unit = len(picture) / 96
    outline = np.zeros(mask.shape, bool)
    down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    outline[1:] |= down
    outline[:-1] |= down
    outline[:, 1:] |= right
    outline[:, :-1] |= right
    away = distance_transform_edt(~outline) if outline.any() else np.full(mask.shape, np.inf)
    band = (away > 1.5 * unit) & (away <= 5 * unit)
    n, m = int(outline.sum()), int(band.sum())
    if min(n, m) < SMALLEST:
        return math.nan
    gradient = gaussian_gradient_magnitude(picture.astype(np.float32), 0.7 * unit)
    ranks = rankdata(np.concatenate([gradient[outline], gradient[band]]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def within_source(source: SliceSet, pairs: int = 50) -> float:
    """Median distance of one organ in two source slices of different cases: what is no style."""
    slices = source.kept()
    rng = np.random.default_rng(0)
    found = []
    for n in rng.permutation(len(slices))[:pairs]:
        others = [
            s for s in slices if s.case != slices[n].case and s.pixels.keys() & slices[n].pixels
        ]
        if not others:
            continue
        both = (slices[n], others[rng.integers(len(others))])
        pictures = [read_picture(source, s.image) for s in both]
        masks = [read_picture(source, s.mask) for s in both]
        for value in source.labels.values():
            parts = [p[m == value] for p, m in zip(pictures, masks, strict=True)]
            if min(map(len, parts)) >= SMALLEST:
                found.append(histogram_distance(*parts))
    return _median(found)


def summarise(
    judged: SliceSet, numbers: Sequence[Numbers], config: CheckConfig, floor: float
) -> dict[str, Any]:
    """The report: settings, medians of every style, and the set's faults in words."""
    styles, faults = {}, []
    by_style: dict[str, list[Numbers]] = defaultdict(list)
    for n in numbers:
        by_style[n.style].append(n)
    for style, group in by_style.items():
        organs = {name for n in group for name in n.organs}
        others = {name for n in group for name in n.between}
        kept = sum(1 for s in judged.kept() if s.style == style)
        styles[style] = entry = {
            "slices": len(group),
            "kept": kept,
            "moved": _median(n.moved for n in group),
            "moved_by_organ": {
                name: _median(n.organs[name] for n in group if name in n.organs)
                for name in sorted(organs)
            },
            "moved_over_all": _median(n.picture for n in group),
            "between_styles": {
                name: _median(n.between[name] for n in group if name in n.between)
                for name in sorted(others)
            },
            "edges": _median(n.edges for n in group),
            "source_edges": _median(n.source_edges for n in group),
            "dice": _median(n.dice for n in group),
        }
        if entry["moved"] < config.moved:
            faults.append(
                f"{style} looks like the source (moved {entry['moved']:.3f}): the intervention "
                "failed."
            )
        if entry["edges"] < config.edges:
            faults.append(
                f"{style} has few edges where the masks have them (edges {entry['edges']:.2f}, "
                f"those of the source {entry['source_edges']:.2f}): the ControlNet failed, or the "
                "style hides the organs, as speckle does in small pictures."
            )
        faults += [
            f"{style} and {other} look alike ({value:.3f}): the prompts mean nothing."
            for other, value in entry["between_styles"].items()
            if style < other and value < config.moved
        ]
    return _json_numbers(
        {
            "settings": asdict(config),
            "slices": len(numbers),
            "kept": len(judged.kept()),
            "within_source": floor,
            "styles": styles,
            "faults": faults,
        }
    )


def contact_sheet(
    path: Path, source: SliceSet, judged: SliceSet, numbers: dict[str, Numbers]
) -> None:
    """Source slices and their styles: some evenly spread, then those of the worst edges."""
    styles = list(dict.fromkeys(s.style for s in judged.slices))
    groups: dict[str, dict[str, Slice]] = defaultdict(dict)
    for s in judged.slices:
        groups[s.source][s.style] = s
    names = list(groups)
    even = [names[n] for n in np.unique(np.linspace(0, len(names) - 1, ROWS).astype(int))]

    def lowest(name: str) -> float:
        values = [numbers[s.name].edges for s in groups[name].values()]
        return min((v for v in values if not math.isnan(v)), default=math.inf)

    worst = sorted((n for n in names if n not in even), key=lowest)[:ROWS]
    rows = [*even, *worst]
    originals = {s.name: s for s in source.slices}
    figure = Figure(figsize=(2.2 * (len(styles) + 1), 2.4 * len(rows)))
    grid = figure.subplots(len(rows), len(styles) + 1, squeeze=False)
    for axes_row, name in zip(grid, rows, strict=True):
        mask = read_picture(source, originals[name].mask)
        first = next(iter(groups[name].values()))
        edges = numbers[first.name].source_edges
        picture = read_picture(source, originals[name].image)
        _draw(axes_row[0], picture, mask, f"{name}\nedges {edges:.2f}", "black")
        for axes, style in zip(axes_row[1:], styles, strict=True):
            if style not in groups[name]:
                axes.set_axis_off()
                continue
            s = groups[name][style]
            n = numbers[s.name]
            dice = "" if math.isnan(n.dice) else f", Dice {n.dice:.2f}"
            title = f"{style}{': set aside' if s.rejected else ''}\n"
            title += f"moved {n.moved:.2f}, edges {n.edges:.2f}{dice}"
            _draw(
                axes, read_picture(judged, s.image), mask, title, "red" if s.rejected else "black"
            )
    save(figure, path)


def _draw(axes: Any, picture: np.ndarray, mask: np.ndarray, title: str, colour: str) -> None:  # noqa: ANN401
    draw_outlined(axes, picture, {"solid": mask}, limits=(0, 255), width=0.7)
    axes.set_title(title, fontsize=6, color=colour)


def _network_dice(found: SliceSet, s: Slice, network: ModelBundle, device: str) -> float:
    """Mean Dice over the organs of the network on a picture, as if all of a scan looked so.

    The picture is repeated to fill the network's window, without its tilt, and its grey values
    are what `style prepare` made them from.
    """
    picture, mask = read_picture(found, s.image), read_picture(found, s.mask)
    source = read_manifest(found.folder / found.source)
    lower, upper = source.settings["window"] if source.modality == "CT" else (0.0, 255.0)
    affine = np.array(s.affine).reshape(4, 4)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    direction = np.rint(affine[:3, :3] / lengths)
    depth = int(np.ceil(network.description.grid.extent.max() / lengths[2])) | 1
    straight = np.eye(4)
    straight[:3, :3] = direction * lengths
    values = np.repeat(picture[None] * np.float32((upper - lower) / 255) + lower, depth, axis=0)
    scan = Volume(values.astype(np.float32), Geometry(values.shape[::-1], straight))
    labels = segment(
        scan,
        network,
        modality=source.modality,
        source_matching=False,
        device=device,
        keep_largest=False,
    ).labels.array[depth // 2]
    scores = []
    for value in found.labels.values():
        true, predicted = mask == value, labels == value
        if true.sum() >= SMALLEST:
            scores.append(dice(true, predicted, empty=np.nan))
    return _mean(scores)


def _check_labels(network: ModelBundle, found: SliceSet) -> None:
    described = tuple(segment_for(name, value) for name, value in found.labels.items())
    if network.description.labels != described:
        names = ", ".join(label.name for label in network.description.labels)
        raise BundleError(
            f"The network {network.description.name} finds {names}, the slices show "
            f"{', '.join(found.labels)}; give one that was trained on their dataset."
        )


def _read_partial(out: Path, network: ModelBundle | None, found: SliceSet) -> dict[str, Numbers]:
    """The numbers of a check of the same set that was stopped."""
    try:
        content = json.loads((out / PARTIAL).read_text(encoding="utf-8"))
        if content["of"] != _identity(network, found):
            return {}
        return {n["name"]: Numbers(**n) for n in content["numbers"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_partial(
    out: Path, network: ModelBundle | None, found: SliceSet, made: dict[str, Numbers]
) -> None:
    content = {"of": _identity(network, found), "numbers": [asdict(n) for n in made.values()]}
    write_bytes(out / PARTIAL, json.dumps(content).encode())


def _identity(network: ModelBundle | None, found: SliceSet) -> list[str]:
    """What the numbers depend on: the network, the pictures and the masks."""
    sums = [digest for s in found.slices for digest in (s.image_sha256, s.mask_sha256)]
    return [network.identity if network else "", *sums]


def _write_report(
    out: Path, report: dict[str, Any], numbers: Sequence[Numbers], reasons: dict[str, str]
) -> None:
    organs = list(dict.fromkeys(name for n in numbers for name in n.organs))
    text = io.StringIO()
    columns = ["name", "source", "style", "moved", *(f"moved_{o}" for o in organs)]
    columns += ["moved_over_all", "edges", "source_edges", "dice", "set_aside"]
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for n in numbers:
        values = [n.moved, *(n.organs.get(o, math.nan) for o in organs)]
        values += [n.picture, n.edges, n.source_edges, n.dice]
        cells = ["" if math.isnan(v) else f"{v:.4f}" for v in values]
        table.writerow([n.name, n.source, n.style, *cells, reasons[n.name]])
    write_bytes(out / "check.csv", text.getvalue().encode())
    write_bytes(out / "check.json", (json.dumps(report, indent=1) + "\n").encode())


def _json_numbers(content: Any) -> Any:  # noqa: ANN401 - plain JSON values
    """Rounded, and null in place of nan."""
    if isinstance(content, dict):
        return {key: _json_numbers(value) for key, value in content.items()}
    if isinstance(content, float):
        return None if math.isnan(content) else round(content, 4)
    return content


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.fmean(values) if values else math.nan


def _median(values: Iterable[float]) -> float:
    there = [v for v in values if not math.isnan(v)]
    return statistics.median(there) if there else math.nan
