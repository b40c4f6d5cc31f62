# SPDX-License-Identifier: Apache-2.0
"""Tests and tutorials inside Slicer; `Testing/run_in_slicer.py` starts Slicer with this script.

Only Slicer's documented interface is used, and the buttons that the tutorials of the README name.
"""

import json
import sys
import time
import traceback
import unittest
from collections.abc import Callable
from pathlib import Path

import qt
import slicer

MODULES = ("SRCSMSegmenter", "SAMRefine")
TICK_MS = 5
PATIENCE = 600
"""Seconds after which what a step waits for is not expected any more."""


class Stalls:
    """Timer that measures for how long the event loop stood still at most."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.monotonic()
        self._timer = qt.QTimer()
        self._timer.setInterval(TICK_MS)
        self._timer.connect("timeout()", self._tick)
        self._timer.start()

    def _tick(self) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self._last - TICK_MS / 1000)
        self._last = now

    def reset(self) -> None:
        """Begin to measure anew."""
        slicer.app.processEvents()
        self.longest, self._last = 0.0, time.monotonic()

    def stop(self) -> None:
        """End measuring."""
        self._timer.stop()


class Tour:
    """Steps, one after the other: each is timed and has its picture taken.

    Attributes:
        steps: {name, seconds, stall_ms} of each.
        failed: what failed, a line each.
    """

    def __init__(self, output: Path) -> None:
        self.steps: list[dict] = []
        self.failed: list[str] = []
        self._output, self._stalls = output, Stalls()

    def step(self, name: str, act: Callable[[], object]) -> bool:
        """Do a step; return whether it went well."""
        self._stalls.reset()
        started, well = time.monotonic(), True
        try:
            act()
        except Exception:
            self.failed.append(f"{name}: {traceback.format_exc(limit=-2)}")
            well = False
        for _ in range(5):  # it is drawn
            slicer.app.processEvents()
        self.steps.append(
            {
                "name": name,
                "seconds": round(time.monotonic() - started, 2),
                "stall_ms": round(1000 * self._stalls.longest, 1),
            }
        )
        number, words = len(self.steps), "-".join(name.replace(":", "").split())
        window = slicer.util.mainWindow()
        window.grab().save(str(self._output / f"{number:02d}-{words}.png"))
        return well

    def end(self) -> None:
        """Stop measuring."""
        self._stalls.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    """Leave the event loop to Slicer until something is so.

    Raises:
        TimeoutError: it is not so in time.
    """
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"it was not so after {PATIENCE} s")
        slicer.app.processEvents()
        time.sleep(TICK_MS / 1000)


def press(button: "qt.QPushButton") -> None:
    """Click a button, which has to be enabled."""
    if not button.enabled:
        raise RuntimeError(f"{button.name} is disabled: {button.toolTip}")
    button.click()


def run_tests(failed: list[str]) -> int:
    """Run the panels' tests and those that Reload and Test runs; return their number."""
    count = 0
    for module in MODULES:
        folder = Path(slicer.util.modulePath(module)).parent / "Testing"
        sys.path.insert(0, str(folder))
        slicer.util.selectModule(module)
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromName(f"{module}PanelTest").run(result)
        count += result.testsRun
        failed += [f"{test.id()}: {text}" for test, text in result.failures + result.errors]
        count += 1
        try:
            own = getattr(sys.modules[module], f"{module}Test")()
            own.runTest()
        except unittest.SkipTest as error:
            print(f"{module}Test: skipped, {error}")
        except Exception:
            failed.append(f"{module}Test: {traceback.format_exc(limit=-2)}")
    return count


def segmenter_tutorial(tour: Tour) -> bool:
    """Do what the README's tutorial of SRCSM Segmenter says."""
    slicer.mrmlScene.Clear()
    tour.step("Segmenter: sample data", load_sample)
    slicer.util.selectModule("SRCSMSegmenter")
    widget = slicer.util.getModuleWidget("SRCSMSegmenter")
    ui = widget.ui

    def segment() -> None:
        press(ui.segmentButton)
        wait_until(lambda: widget.run is None)
        if not ui.messageLabel.isHidden():
            raise RuntimeError(ui.messageLabel.text)

    if not tour.step("Segmenter: Segment", segment):
        return False
    tour.step("Segmenter: an organ's middle", lambda: widget.results.onOrganClicked(0, 0))
    tour.step("Segmenter: Show 3D", lambda: press(ui.show3DButton))
    tour.step("Segmenter: Copy table", lambda: press(ui.copyButton))
    return True


def load_sample() -> None:
    """Load the MR phantom as Sample Data does."""
    from SRCSMSegmenterLib.scene.samples import load_phantom

    load_phantom("MR")


def refine_tutorial(tour: Tour) -> None:
    """Do what the README's tutorial of SAM Refine says, with the result of the other."""
    ui = slicer.util.getModuleWidget("SRCSMSegmenter").ui
    if not tour.step("Refine: Boxes", lambda: press(ui.refineButton)):
        return
    widget = slicer.util.getModuleWidget("SAMRefine")
    ui = widget.ui

    def refine() -> None:
        ui.organTable.selectRow(ui.organTable.rowCount - 1)
        press(ui.refineOrganButton)
        wait_until(lambda: widget.session.run is None)

    if tour.step("Refine: Refine organ", refine):
        tour.step("Refine: Before", lambda: press(ui.beforeButton))
        tour.step("Refine: After", lambda: press(ui.beforeButton))
        tour.step("Refine: Undo", lambda: press(ui.undoButton))
        tour.step("Refine: Redo", lambda: press(ui.redoButton))
    tour.step("Refine: back to Segmenter", lambda: slicer.util.selectModule("SRCSMSegmenter"))


def main(output: Path) -> int:
    """Run everything and write the report; return the exit code."""
    failed: list[str] = []
    tests = run_tests(failed)
    tour = Tour(output)
    try:
        if segmenter_tutorial(tour):
            refine_tutorial(tour)
    finally:
        tour.end()
    report = {
        "slicer": slicer.app.applicationVersion,
        "tests": tests,
        "steps": tour.steps,
        "failed": failed + tour.failed,
    }
    (output / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    slicer.util.exit(main(Path(sys.argv[1])))
