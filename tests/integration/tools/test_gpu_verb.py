"""`make test-gpu` where there is nothing to test with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.fake_nvml import FakeNvml


def run(env: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu"],
        env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_without_a_gpu_one_line_says_that_nothing_ran_and_why(
    tmp_path: Path, fake_nvml: FakeNvml
) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()  # found first, wherever the machine has a real one
    told = "make test-gpu: nothing ran, for there is no NVIDIA GPU here ({})\n"
    assert run({"LD_LIBRARY_PATH": str(tmp_path)}) == (0, told.format("no NVML library"))
    fake_nvml.show()
    assert run(fake_nvml.env) == (0, told.format("NVML shows none"))


def test_a_gpu_on_which_no_program_can_be_started_is_a_failure(fake_nvml: FakeNvml) -> None:
    code, said = run(
        {**fake_nvml.env, "CUDA_VISIBLE_DEVICES": "", "__EGL_VENDOR_LIBRARY_DIRS": "/"}
    )
    assert code == 1
    assert "the CUDA program did not run: " in said and "the graphics program did not run: " in said
