# SPDX-License-Identifier: Apache-2.0
"""Campaign of damaged inputs, disturbed runs and load against the whole product.

    make campaign BUDGET=20                  minutes; goes on from campaign-output/trials.jsonl
    export PYTHONPATH=Testing/helpers
    python Testing/campaign --budget 20 --only bad_input --seed 3
    python Testing/campaign --report         print the table of BENCHMARKS.md
    python Testing/campaign --report --write

The time is dealt out evenly; a trial is made again from the seed and its number. The exit code is 1
if a trial of this campaign failed.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import record
import torch
from bad_input import BadInput
from faults import Faults
from load import Load
from unruly import Unruly
from writers import Writers

from srcsm_training.experiments.reports import REPOSITORY, show_report

PARTS = {
    "bad_input": BadInput,
    "writers": Writers,
    "faults": Faults,
    "unruly": Unruly,
    "load": Load,
}

Part = BadInput | Writers | Faults | Unruly | Load


def main(argv: Sequence[str] | None = None) -> int:
    """Try until the budget is spent, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=10, metavar="MINUTES")
    parser.add_argument("--trials", type=int, metavar="N", help="of each part, at the most")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "campaign-output")
    parser.add_argument("--report", action="store_true", help="print the table of all trials")
    parser.add_argument("--write", action="store_true", help="write it into BENCHMARKS.md")
    arguments = parser.parse_args(argv)
    path = arguments.out / "trials.jsonl"
    if arguments.report:
        show_report("campaign", record.table(record.read(path)), arguments)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    before = len(record.read(path))
    for name in arguments.only:
        with tempfile.TemporaryDirectory(prefix="srcsm-campaign-") as folder:
            minutes = arguments.budget / len(arguments.only)
            run_part(PARTS[name](Path(folder)), path, 60 * minutes, arguments)
    trials = record.read(path)
    print(record.table(trials))
    return int(any(not trial.held for trial in trials[before:]))


def run_part(part: Part, path: Path, seconds: float, arguments: argparse.Namespace) -> None:
    """Go on with a part of the campaign from its last trial."""
    done = sum(trial.part == part.name for trial in record.read(path))
    end = time.monotonic() + seconds
    try:
        for number in itertools.count(done):
            late = time.monotonic() > end
            if late or (arguments.trials is not None and number - done >= arguments.trials):
                break
            trial = part.trial(number, arguments.seed)
            if trial is None:  # all there are were tried
                break
            record.append(path, trial)
            if not trial.held:
                print(f"{trial.kind} {number}: {trial.outcome}: {trial.detail}", flush=True)
    finally:
        if isinstance(part, BadInput | Load):
            part.close()


if __name__ == "__main__":
    sys.exit(main())
