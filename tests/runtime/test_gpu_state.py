"""Clocks, power and temperature: by NVML, by nvidia-smi, and why they are not known. Against fakes."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from runtime import gpu_state
from runtime.gpu_state import GpuRecord, GpuState, read_state, watched
from tests.runtime.engine.fakes import install

BUS = "0000:0B:00.0"


def fake_nvml(broken=(), starts=True):
    """NVML of a machine with one GPU at ``BUS``; functions in ``broken`` fail, as on virtual GPUs."""
    nvml = types.ModuleType("pynvml")
    nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM, nvml.NVML_TEMPERATURE_GPU, nvml.open = 1, 2, 0, 0
    answers = {
        "nvmlDeviceGetName": "NVIDIA A100", "nvmlSystemGetDriverVersion": "550.54", "nvmlDeviceGetPowerUsage": 71500,
        "nvmlDeviceGetTemperature": 41,
    }  # fmt: skip

    def given(name):
        def function(*_):
            if name in broken:
                raise RuntimeError("Not Supported")
            assert nvml.open
            return answers[name]

        return function

    for name in answers:
        setattr(nvml, name, given(name))

    def start():
        if not starts:
            raise RuntimeError("Driver Not Loaded")
        nvml.open += 1

    def by_bus(bus):
        assert bus == BUS.encode()
        return "handle"

    def stop():
        nvml.open -= 1

    nvml.nvmlInit, nvml.nvmlShutdown, nvml.nvmlDeviceGetHandleByPciBusId = start, stop, by_bus
    nvml.nvmlDeviceGetHandleByIndex = lambda number: "handle"
    nvml.nvmlDeviceGetClockInfo = lambda handle, which: {1: 1410, 2: 1215}[which]
    return nvml


@pytest.fixture
def machine(monkeypatch):
    """Puts an NVML, and what nvidia-smi prints, in place."""

    def put(nvml=None, smi=None):
        install(monkeypatch)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)

        def run(command, **_):
            if smi is None:
                raise FileNotFoundError(command[0])
            assert f"--id={BUS}" in command
            if isinstance(smi, Exception):
                raise smi
            return subprocess.CompletedProcess(command, 0, smi, "")

        monkeypatch.setattr(gpu_state.subprocess, "run", run)

    return put


NVML = GpuState("NVIDIA A100", "550.54", 1410, 1215, 71.5, 41, "nvml")
SMI = GpuState("NVIDIA L4", "550.54", 2040, 6251, 30.1, None, "nvidia-smi")
FAILED = subprocess.CalledProcessError(9, "nvidia-smi", "NVIDIA-SMI has failed\nmore")


@pytest.mark.parametrize(
    ("nvml", "smi", "state", "missing"),
    [
        (fake_nvml(), None, NVML, ""),
        (fake_nvml(("nvmlDeviceGetPowerUsage",)), None, GpuState(*list(vars(NVML).values())[:4], None, 41, "nvml"), ""),
        (None, "NVIDIA L4, 550.54, 2040, 6251, 30.10, [N/A]\n", SMI, ""),
        (fake_nvml(starts=False), "NVIDIA L4, 550.54, 2040, 6251, 30.10, [N/A]\n", SMI, ""),
        (
            fake_nvml(("nvmlDeviceGetName",)),
            None,
            None,
            "NVML finds no such GPU: Not Supported; there is no nvidia-smi",
        ),
        (None, FAILED, None, "NVML's package is not installed; nvidia-smi fails: NVIDIA-SMI has failed"),
        (None, "No devices were found\n", None, "nvidia-smi answers 'No devices were found'"),
    ],
    ids=["nvml", "no power", "smi", "nvml does not start", "nothing", "smi fails", "no device"],
)
def test_states(machine, nvml, smi, state, missing):
    machine(nvml, smi)
    found, why = read_state()
    assert found == state
    assert missing in why
    assert bool(why) is (state is None)
    assert nvml is None or nvml.open == 0


def test_what_is_recorded(machine):
    machine(fake_nvml())
    assert watched("tensorrt")() == GpuRecord(NVML, NVML, "")
    assert watched("ort-cpu")() is None
    machine()
    found = watched("ort-cuda")()
    assert (found.before, found.after) == (None, None)
    assert "pip install nvidia-ml-py" in found.missing
