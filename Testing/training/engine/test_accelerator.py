# SPDX-License-Identifier: Apache-2.0
"""Precision: what is chosen on which device, and going on in another one.

What a processor has is set in child processes, so that any machine checks what others do.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from srcsm_training.engine.accelerator import EMULATION_FACTOR, _precision_on, accelerator_for
from srcsm_training.engine.checkpoint import without_precision
from srcsm_training.engine.limits import Limits
from srcsm_training.segmentation.run import run_training
from SRCSMSegmenterLib.devices import bf16_instructions, preferred_precision

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

CPU = torch.device("cpu")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def in_child(code: str, *arguments: object, **variables: str) -> str:
    """Standard output of Python code in a process with these variables of the environment."""
    paths = os.pathsep.join(
        [str(Path(__file__).resolve().parents[2] / "helpers"), *filter(None, sys.path)]
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, **variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.fixture
def processor(monkeypatch):
    """Sets what the processor has."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)

    def having(*instructions: str) -> None:
        found = dict.fromkeys(instructions, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)

    return having


@pytest.mark.parametrize(
    ("instructions", "most", "found"),
    [
        ((), "", None),
        (("avx2",), "", None),
        (("avx512_f",), "", None),
        (("avx512_bf16",), "", "AVX512-BF16"),
        (("avx512_bf16", "amx_bf16"), "", "AMX"),
        (("avx512_bf16", "amx_bf16"), "default", "AMX"),
        (("avx512_bf16", "amx_bf16"), "avx512_core_amx", "AMX"),
        (("avx512_bf16", "amx_bf16"), "AVX512_CORE_BF16", "AVX512-BF16"),
        (("avx512_bf16", "amx_bf16"), "avx512_core_vnni", None),
        (("avx512_bf16", "amx_bf16"), "AVX2", None),
    ],
)
def test_a_processor_counts_as_what_onednn_may_use_of_it(
    processor, monkeypatch, instructions, most, found
):
    processor(*instructions)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert bf16_instructions() == found
    assert preferred_precision(CPU)[0] == ("bf16" if found else "fp32")


@pytest.mark.parametrize(
    ("native", "capability", "chosen"),
    [(True, (8, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 1), "fp32")],
)
def test_older_gpus_compute_in_half_precision_if_they_gain_by_it(
    monkeypatch, native, capability, chosen
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert preferred_precision(torch.device("cuda:0"))[0] == chosen


def test_apples_gpu_computes_in_full():
    precision, reason = preferred_precision(torch.device("mps"))
    assert (precision, "mps" in reason) == ("fp32", True)


def test_auto_trains_in_full_on_slices_that_bf16_cannot_be_trained_on(processor):
    processor("avx512_bf16")
    small, large = (_precision_on(CPU, "auto", "tune", plane) for plane in (8192, 8193))
    assert small == ("bf16", "the processor has AVX512-BF16", "")
    assert large[0] == "fp32"
    assert "slices this large" in large[1]


def test_emulated_bf16_is_warned_of_with_the_factor(processor):
    processor("avx2")
    precision, _, warning = _precision_on(CPU, "bf16", "tune", 0)
    assert precision == "bf16"
    assert f"{EMULATION_FACTOR} times" in warning
    assert "tune.precision=auto" in warning
    processor("avx512_bf16")
    assert _precision_on(CPU, "bf16", "tune", 0)[2] == ""


def test_the_user_is_told_the_device_the_precision_and_the_warning(processor):
    processor("avx2")
    lines: list[str] = []
    computing = accelerator_for("cpu", "bf16", "tune")
    tell = computing.introduce(lines.append)
    assert tell == lines.append
    assert lines == [
        "Computing on cpu (1 process) in bf16: the configuration asks for it.",
        "Warning: this processor emulates bf16, and a step takes about 34 times as long as in "
        "fp32; choose tune.precision=auto.",
    ]
    assert computing.record()["precision"] == "bf16"


def test_with_both_variables_set_the_processor_has_avx2_alone():
    code = """
import torch
from SRCSMSegmenterLib.devices import autocast, preferred_precision
with autocast(torch.device("cpu")):
    print(torch.backends.cpu.get_cpu_capability(), preferred_precision(torch.device("cpu"))[0],
          torch.is_autocast_enabled("cpu"))
"""
    assert in_child(code, **AVX2) in ("AVX2 fp32 False", "DEFAULT fp32 False")


TRAIN = """
import sys
from pathlib import Path
import tiny
from srcsm_training.segmentation.run import run_training
data, out = map(Path, sys.argv[1:])
config = tiny.config(precision="auto")
run_training(data, config, out, device="cpu", cache=out.parent / "cache")
"""


def environment(out: Path) -> dict:
    return json.loads((out / "environment.json").read_text("utf-8"))


def test_on_avx2_alone_auto_trains_in_full_and_a_run_of_bf16_goes_on(tmp_path, folder):
    out = tmp_path / "run"
    lines: list[str] = []
    settings = {"device": "cpu", "cache": tmp_path / "cache"}
    begun = run_training(
        folder,
        tiny.config(precision="bf16"),
        out,
        limits=Limits(stop_requested=lambda: True),
        **settings,
    )
    assert (begun.steps, begun.finished) == (1, False)
    assert environment(out)["precision"] == "bf16"

    told = in_child(TRAIN, folder, out, **AVX2).splitlines()
    first = "Computing on cpu (1 process) in fp32: the processor has no bfloat16 instructions."
    assert told[0] == first
    assert "What was begun in bf16 goes on in fp32." in told
    assert environment(out)["precision"] == "fp32"
    assert environment(out)["precision_reason"] == "the processor has no bfloat16 instructions"
    assert (out / "model").is_dir()
    # A finished run is known by everything but its precision too.
    tiny.forget_accelerator()
    again = run_training(
        folder, tiny.config(precision="fp32"), out, limits=Limits(say=lines.append), **settings
    )
    assert again.finished
    assert not any("goes on in" in line for line in lines)


def test_settings_are_known_without_their_precisions():
    settings = {"a": {"precision": "bf16", "b": 1}, "precision": "fp32", "c": [2]}
    assert without_precision(settings) == {"a": {"b": 1}, "c": [2]}
    assert settings["precision"] == "fp32"
