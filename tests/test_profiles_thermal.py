"""Sensors on trees of files as kernels show them, on a GPU that answers by heart, and on this machine."""

import json
import os
from dataclasses import replace

import pytest
from fake_sysfs import laptop, orin_nano, plant

from profiles import jetson
from profiles.machine import machine
from profiles.nvml import Gpu, open_gpu
from profiles.thermal import NO_CLOCKS, NO_TEMPERATURES, NO_THROTTLING, Sensors, State, facts, thread_affinity

COOL = State(cpu_mhz=2000.0, cpu_limit_mhz=4000.0, temperatures_c={"cpu": 50.0}, affinity={})


@pytest.fixture(autouse=True)
def two_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


class Library:
    """NVML that tells what it was made with and refuses the rest."""

    def __init__(self, gpus=1, **values):
        self.gpus, self.values, self.asked = gpus, values, []

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlDeviceGetCount(self):  # noqa: N802
        return self.gpus

    def nvmlDeviceGetHandleByPciBusId(self, place):  # noqa: N802
        self.asked.append(place)
        return place

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        self.asked.append(index)
        return index

    def nvmlDeviceGetHandleByUUID(self, name):  # noqa: N802
        self.asked.append(name)
        return name

    def __getattr__(self, name):
        def call(handle, *arguments):
            if name not in self.values:
                raise RuntimeError("Not Supported")
            value = self.values[name]
            return value[arguments[0]] if isinstance(value, dict) else value

        return call


def test_orin_nano(tmp_path):
    sensors = Sensors("cuda:0", root=orin_nano(tmp_path))
    state = sensors.read()
    assert (state.cpu_mhz, state.cpu_limit_mhz, state.governor) == (1190.4, 1510.4, "schedutil")
    assert (state.gpu_mhz, state.memory_mhz, state.power_mode, state.jetson_clocks) == (306.0, 2133.0, "15W", False)
    assert state.temperatures_c == {"cpu-thermal": 48.25, "gpu-thermal": 47.0}
    assert state.throttle == ()  # a fan that turns slows nothing
    assert sensors.missing == {}
    assert json.loads(json.dumps(state.row())) == state.row()


def test_throttling_of_an_orin_nano_is_seen_while_and_when_it_happens(tmp_path):
    sensors = Sensors(root=orin_nano(tmp_path))
    plant(tmp_path, {"sys/class/thermal/cooling_device1/cur_state": 1, "sys/class/hwmon/hwmon0/oc1_event_cnt": 2})
    assert sensors.read().throttle == ("cooling cpu-throttle-alert", "over-current oc1")
    assert sensors.read().throttle == ("cooling cpu-throttle-alert",)  # no further event


def test_held_clocks_are_jetson_clocks(tmp_path):
    orin_nano(tmp_path)
    gpu = "sys/class/devfreq/17000000.gpu"
    plant(tmp_path, {f"{gpu}/min_freq": 624_750_000})
    assert jetson.jetson_clocks(tmp_path) is False
    plant(tmp_path, {f"sys/devices/system/cpu/cpu{i}/cpufreq/scaling_min_freq": 1_510_400 for i in (0, 1)})
    assert jetson.jetson_clocks(tmp_path) is True
    (tmp_path / gpu / "max_freq").unlink()
    assert jetson.jetson_clocks(tmp_path) is None


def test_state_of_a_jetson(tmp_path):
    orin_nano(tmp_path)
    assert jetson.state(tmp_path) == {
        "board": "NVIDIA Jetson Orin Nano Developer Kit",
        "l4t": "36.4.3",
        "nvpmodel": "15W",
        "jetson_clocks": False,
        "emc_mhz": 2133.0,
    }
    plant(tmp_path, {"var/lib/nvpmodel/status": "pmode:0007 fmode:quiet"})
    assert jetson.nvpmodel(tmp_path) == "mode 7"
    (tmp_path / "sys/kernel/debug/bpmp/debug/clk/emc/rate").unlink()
    assert Sensors(root=tmp_path).missing["memory_mhz"] == "the kernel shows no clock of the memory controller"
    plant(tmp_path, {"sys/class/devfreq/31b0000.emc/cur_freq": 665_600_000})
    assert jetson.emc_mhz(tmp_path) == (665.6, None)


def test_only_root_may_read_the_memory_clock(tmp_path, monkeypatch):
    orin_nano(tmp_path)
    path = tmp_path / jetson.EMC_DEBUG[0]
    monkeypatch.setattr(jetson, "number", lambda p: None)
    monkeypatch.setattr(jetson, "why_unreadable", lambda p: f"{p}: only root may read it" if p == path else None)
    assert jetson.emc_mhz(tmp_path) == (None, f"{path}: only root may read it")


def test_a_raspberry_pi_is_no_jetson(tmp_path):
    plant(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B"})
    assert jetson.model(tmp_path) is None
    assert set(jetson.state(tmp_path).values()) == {None}


def test_laptop(tmp_path):
    sensors = Sensors(root=laptop(tmp_path))
    state = sensors.read()
    assert (state.cpu_mhz, state.governor, state.power_mode) == (2500.0, "powersave", "balanced")
    assert state.temperatures_c == {"coretemp": 64.0}  # of the processor, not of the disk
    assert (state.throttle, state.jetson_clocks, state.gpu_mhz) == ((), None, None)
    plant(tmp_path, {"sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count": 13})
    assert sensors.read().throttle == ("package heat",)
    assert sensors.missing == {}


def test_processors_that_are_not_ours_are_not_asked(tmp_path, monkeypatch):
    laptop(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1}, raising=False)
    assert Sensors(root=tmp_path).read().cpu_mhz == 3000.0


def test_a_machine_that_tells_nothing(tmp_path):
    sensors = Sensors(root=tmp_path)
    state = sensors.read()
    assert (state.cpu_mhz, state.temperatures_c, state.throttle, state.governor) == (None, {}, (), None)
    assert sensors.missing == {
        "cpu_mhz": NO_CLOCKS,
        "governor": NO_CLOCKS,
        "temperatures_c": NO_TEMPERATURES,
        "throttle": NO_THROTTLING,
        "power_mode": "the firmware offers no profile",
    }


def test_gpu(tmp_path):
    library = Library(
        nvmlDeviceGetClockInfo={0: 1980, 2: 2619},
        nvmlDeviceGetTemperature={0: 71},
        nvmlDeviceGetCurrentClocksThrottleReasons=0x1 | 0x4 | 0x40,  # idle is no throttling
    )
    gpu = open_gpu("cuda:1", library, {"CUDA_VISIBLE_DEVICES": "3, 5"})
    assert library.asked == [5]
    state = Sensors("cuda:1", root=tmp_path, gpu=gpu).read()
    assert (state.gpu_mhz, state.memory_mhz, state.temperatures_c) == (1980, 2619, {"GPU": 71.0})
    assert state.throttle == ("HwThermalSlowdown", "SwPowerCap")
    assert isinstance(open_gpu("cuda:0", library, {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}), Gpu)
    assert library.asked[-1] == "GPU-8932f937"


def test_cuda_and_nvml_count_gpus_in_different_orders():
    """The fastest is cuda:0, wherever it is plugged in; its PCI place, which the driver tells, is the same for both."""
    library = Library(gpus=2)
    assert isinstance(open_gpu("cuda:0", library, {}, bus_id="0000:02:00.0"), Gpu)
    assert library.asked == ["0000:02:00.0"]
    assert open_gpu("cuda:0", library, {}) == (
        "NVML does not know which of 2 GPUs is cuda:0; set CUDA_DEVICE_ORDER=PCI_BUS_ID"
    )
    assert isinstance(open_gpu("cuda:1", library, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}), Gpu)
    assert isinstance(open_gpu("cuda:0", Library(), {}), Gpu), "one GPU has one place"
    assert library.asked[1:] == [1]


@pytest.mark.parametrize(
    ("shown", "device"), [("", "cuda:0"), ("-1", "cuda:0"), ("3,-1,5", "cuda:1"), ("3,,5", "cuda:1"), ("3", "cuda:1")]
)
def test_gpus_that_are_hidden_are_not_asked(shown, device):
    library = Library()
    assert (
        open_gpu(device, library, {"CUDA_VISIBLE_DEVICES": shown}) == f"CUDA_VISIBLE_DEVICES={shown!r} hides {device}"
    )
    assert library.asked == []


def test_why_a_gpu_is_not_asked(tmp_path):
    class Broken(Library):
        def nvmlInit(self):  # noqa: N802
            raise RuntimeError("Driver Not Loaded")

    reason = "NVML does not tell of cuda:0 (Driver Not Loaded); look at its driver"
    assert open_gpu("cuda:0", Broken(), {}) == reason
    assert open_gpu("cpu") == "cpu is no GPU"
    sensors = Sensors("cuda:0", root=tmp_path)
    assert sensors.missing["gpu_mhz"]
    silent = Sensors("cuda:0", root=tmp_path, gpu=open_gpu("cuda:0", Library(), {}))
    assert silent.missing["gpu_mhz"] == "the GPU does not tell its clock"


def test_facts_in_words():
    assert facts(COOL, COOL) == []
    assert facts(COOL, replace(COOL, cpu_mhz=1950.0, temperatures_c={"cpu": 54.9, "new": 90.0})) == []
    worse = replace(COOL, cpu_mhz=1500.0, cpu_limit_mhz=None, temperatures_c={"cpu": 80.0}, throttle=("package heat",))
    assert facts(COOL, worse) == ["throttled by package heat", "cpu 1500 MHz, was 2000", "cpu 80 °C, was 50"]
    assert facts(worse, worse) == []


def test_threads_and_their_processors(tmp_path):
    tasks = {
        f"proc/self/task/{n}/status": f"Name:\tx\nCpus_allowed_list:\t{c}"
        for n, c in ((1, "0-3"), (2, "2"), (3, "0-3"))
    }
    assert thread_affinity(plant(tmp_path, tasks)) == {"0-3": 2, "2": 1}
    assert thread_affinity(tmp_path / "absent") == {}


def test_this_machine():
    sensors = Sensors()
    state = sensors.read()
    assert json.loads(json.dumps(state.row())) == state.row()
    for field in ("cpu_mhz", "temperatures_c", "power_mode"):
        assert bool(getattr(state, field)) != (field in sensors.missing)
    assert sum(thread_affinity().values()) >= 1 or not os.path.isdir("/proc/self/task")  # noqa: PTH112
    assert {"board", "l4t", "nvpmodel", "jetson_clocks", "emc_mhz"} <= machine().keys()
