# SPDX-License-Identifier: Apache-2.0
"""Curves, pictures and the configuration of a training for TensorBoard, W&B or MLflow.

They are accelerate's trackers, which need the package of that name.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from SRCSMSegmenterLib.errors import ConfigError

from .config import as_yaml
from .keys import keys_of
from .progress import Progress
from .run_folder import Run, curve_row

LOGGERS = ("tensorboard", "wandb", "mlflow")


@dataclass(eq=False)
class Logger:
    """A tracker of a run; silent without one, as on all processes but the main one."""

    tracker: GeneralTracker | None
    run: Run

    def log(self, progress: Progress) -> None:
        """Log the row of the curve if the step that was just counted has one."""
        if self.tracker and progress.curve and progress.curve[-1]["step"] == progress.step:
            row = curve_row(progress.curve[-1], self.run.labels)
            values = {key: float(v) for key, v in row.items() if key != "step" and v != ""}
            self.tracker.log(values, step=progress.step)

    def picture(self, path: Path, step: int) -> None:
        """Log a PNG by the name of its file without the step in it."""
        if self.tracker is None:
            return
        name = path.stem.rstrip("0123456789").rstrip("_")
        if isinstance(self.tracker, MLflowTracker):
            self.tracker.log_artifact(str(path), "previews")
            return
        pixels = (255 * matplotlib.image.imread(path)[..., :3]).astype(np.uint8)
        tensorboard = isinstance(self.tracker, TensorBoardTracker)
        shape = {"dataformats": "NHWC"} if tensorboard else {}
        self.tracker.log_images({name: pixels[None]}, step=step, **shape)


def check_logger(kind: str) -> None:
    """Check that the package of a logger is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec(kind) is None:
        raise ConfigError(f"--logger {kind} needs the package {kind}: pip install {kind}.")


@contextmanager
def open_logger(run: Run, kind: str) -> Iterator[Logger]:
    """Yield the logger of a run, which has its configuration.

    Args:
        kind: one of `LOGGERS`.
    """
    if not run.main:
        yield Logger(None, run)
        return
    tracker = _tracker(run, kind)
    tracker.start()
    try:
        if kind == "tensorboard":  # its table of hyperparameters starts a run of its own each time
            text = as_yaml(run.config).replace("\n", "\n    ")
            tracker.log({"configuration": f"    {text}"}, step=0)
        else:
            tracker.store_init_configuration(_flat(run.config))
        yield Logger(tracker, run)
    finally:
        tracker.finish()


def _tracker(run: Run, kind: str) -> GeneralTracker:
    name = run.folder.resolve().name
    if kind == "wandb":
        # A training that is resumed in its folder goes on with its curves.
        known = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:16]
        return WandBTracker("srcsm", name=name, dir=str(run.folder), id=known, resume="allow")
    if kind == "mlflow":
        return MLflowTracker("srcsm", run_name=name)
    # What was logged after the checkpoint will be logged again.
    purge = run.checkpoint and run.checkpoint["progress"]["step"] + 1
    return TensorBoardTracker("tensorboard", str(run.folder), purge_step=purge)


def _flat(config: Any) -> dict[str, Any]:  # noqa: ANN401 - any configuration dataclass
    """Return the keys of a configuration and their values; lists are texts."""
    values = {entry.name: entry.value for entry in keys_of(config)}
    return {k: str(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
