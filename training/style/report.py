# SPDX-License-Identifier: Apache-2.0
"""The report of a check: a summary of every style, a table of the slices, a contact sheet."""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plots import draw_outlined, save
from .config import CheckConfig
from .measures import Numbers, median
from .slices import Slice, SliceSet, read_picture, write_bytes

ROWS = 5
"""Source slices in either half of the contact sheet."""


def summarise(
    judged: SliceSet, numbers: Sequence[Numbers], config: CheckConfig, floor: float
) -> dict[str, Any]:
    """Summarise a check: settings, medians of every style, and the set's faults in words."""
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
            "moved": median(n.moved for n in group),
            "moved_by_organ": {
                name: median(n.organs[name] for n in group if name in n.organs)
                for name in sorted(organs)
            },
            "moved_over_all": median(n.picture for n in group),
            "between_styles": {
                name: median(n.between[name] for n in group if name in n.between)
                for name in sorted(others)
            },
            "edges": median(n.edges for n in group),
            "source_edges": median(n.source_edges for n in group),
            "dice": median(n.dice for n in group),
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
    """Draw source slices and their styles: some evenly spread, then those of the worst edges."""
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


def _draw(axes: Axes, picture: np.ndarray, mask: np.ndarray, title: str, colour: str) -> None:
    draw_outlined(axes, picture, {"solid": mask}, limits=(0, 255), width=0.7)
    axes.set_title(title, fontsize=6, color=colour)


def write_report(
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
    """Round the numbers of a report, and replace NaN by null."""
    if isinstance(content, dict):
        return {key: _json_numbers(value) for key, value in content.items()}
    if isinstance(content, float):
        return None if math.isnan(content) else round(content, 4)
    return content
