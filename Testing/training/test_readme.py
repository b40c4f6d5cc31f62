# SPDX-License-Identifier: Apache-2.0
"""The examples of training/README.md, as they are printed there."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "training" / "README.md"
PAGE = README.read_text(encoding="utf-8").partition("## SRC in your own training loop")[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.partition("\n## ")[0], re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["torch", "monai", "torchio"])
def test_an_example_of_the_readme_runs(example):
    if "torchio" in example:
        pytest.importorskip("torchio", reason="TorchIO is not installed; its example is not run")
    names = {}
    exec(compile(example, README, "exec"), names)
    looks = names["looks"] if "looks" in names else names["batch"]["image"]
    assert looks.shape[:2] == (2, 1)
    assert looks.isfinite().all()
