"""Energy from trees of files and simulated time: counters that overflow, rails, sampling, idle, and reasons."""

import json

import pytest
from fake_sysfs import laptop, orin_nano, plant

from profiles import power
from profiles.errors import ProfileError
from profiles.nvml import Gpu
from profiles.power import GpuCounter, Rapl, Sampled, measure_energy, meter, rails_of

MS = 1_000_000
PACKAGE = "sys/class/powercap/intel-rapl:0/energy_uj"


class World:
    """Time that passes by work (watts `busy`) and sleep (watts `idle`), and a meter of both."""

    name, scope, cadence = "world", "everything", "exact"

    def __init__(self, idle=2.0, busy=10.0):
        self.idle, self.busy, self.ns, self.total, self.open = idle, busy, 0, 0.0, 0

    def now_ns(self):
        return self.ns

    def joules(self):
        assert self.open == 1
        return self.total

    def __enter__(self):
        self.open += 1
        return self

    def __exit__(self, *_):
        self.open -= 1

    def pass_ns(self, ns, watts):
        self.ns += ns
        self.total += watts * ns / 1e9

    def query(self):
        self.pass_ns(10 * MS, self.busy)

    def sleep(self, seconds):
        self.pass_ns(round(seconds * 1e9), self.idle)


def measure(world, **options):
    return measure_energy(world.query, world, clock=world, sleep=world.sleep, **options)


def test_energy_an_image_and_above_idle():
    world = World()
    found = measure(world, seconds=40.0, batch=4)
    assert (found.queries, found.batch, found.seconds) == (4000, 4, 40.0)
    assert found.energy_j == pytest.approx(10.0 * 0.010 / 4)
    assert found.above_idle_j == pytest.approx(8.0 * 0.010 / 4)
    assert (found.power_w, found.idle_w) == (pytest.approx(10.0), pytest.approx(2.0))
    assert found.estimate == ("estimate of everything by on-board sensors, other programs included, not of the wall")
    assert json.loads(json.dumps(found.row())) == found.row()
    assert world.open == 0


def test_short_work_is_said_to_be_short_and_no_work_is_not_below_nothing():
    found = measure(World(idle=10.0, busy=9.0), seconds=3.0)
    assert found.above_idle_j is None
    assert found.energy_j > 0
    assert found.estimate.endswith("not of the wall; 3 s is too short to be steady, 30 are asked for")


def test_a_sensor_that_does_not_move_is_refused():
    with pytest.raises(ProfileError) as caught:
        measure(World(busy=0.0), seconds=1.0)
    assert str(caught.value) == "world: the sensor did not move in 1.0 s; measure longer"


def test_rapl_counts_packages_and_memory_once_and_overflows(tmp_path):
    found = meter("cpu", root=laptop(tmp_path))
    assert isinstance(found, Rapl)
    assert (found.name, found.scope) == ("rapl", "dram, package-0")
    assert found.joules() == 0.0
    plant(tmp_path, {PACKAGE: 100_000_000})  # 900 J, 1000 J = 0 J, 100 J
    assert found.joules() == pytest.approx(200.0)
    plant(tmp_path, {"sys/class/powercap/intel-rapl:0:1/energy_uj": 53_000_000})
    assert found.joules() == pytest.approx(203.0)
    (tmp_path / PACKAGE).unlink()
    with pytest.raises(ProfileError, match="energy_uj: cannot be read any more; measure without energy"):
        found.joules()


def test_rapl_of_root_alone_and_no_rapl_are_reasons(tmp_path, monkeypatch):
    assert meter("cpu", root=tmp_path) == "no RAPL in sysfs (powercap); virtual machines have none"
    laptop(tmp_path)
    monkeypatch.setattr(power, "why_unreadable", lambda path: f"{path}: only root may read it")
    assert meter("cpu", root=tmp_path) == f"{tmp_path / PACKAGE}: only root may read it"


def test_rails_of_an_orin_nano(tmp_path):
    orin_nano(tmp_path)
    assert {name: read() for name, read in rails_of(tmp_path).items()} == {"VDD_IN": 5.0, "VDD_CPU_GPU_CV": 1.0}
    found = meter("cuda:0", root=tmp_path)
    assert isinstance(found, Sampled)
    assert (found.name, found.scope) == ("jetson-rails", "module rail VDD_IN")


def test_rails_are_summed_where_none_feeds_the_module(tmp_path):
    orin_nano(tmp_path)
    folder = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    plant(tmp_path, {f"{folder}/in1_label": "VDD_GPU_SOC", f"{folder}/in3_label": "VIN_SYS_5V0"})
    found = meter("cpu", root=tmp_path)
    assert found.scope == "sum of rails VDD_GPU_SOC, VDD_CPU_GPU_CV, VIN_SYS_5V0"
    assert found._watts() == 6.0
    thor = tmp_path / "thor"
    plant(thor, {"proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit"})
    assert meter("cpu", root=thor) == "no INA power monitor in sysfs below /sys/bus/i2c; this Jetson tells no power"
    plant(thor, {"sys/class/hwmon/hwmon2/name": "ina238", "sys/class/hwmon/hwmon2/power1_input": 25_000_000})
    assert meter("cpu", root=thor)._watts() == 25.0


def test_samples_are_integrated_as_trapezoids():
    world, watts = World(), [4.0]
    found = Sampled("rails", "r", lambda: watts[0], clock=world)
    world.ns, watts[0] = 1_000 * MS, 8.0
    assert found.joules() == pytest.approx(6.0)
    world.ns = 3_000 * MS
    assert found.joules() == pytest.approx(6.0 + 16.0)
    watts[0] = None
    with pytest.raises(ProfileError, match="rails: the sensor stopped telling its power; measure without energy"):
        found.joules()


def test_sampling_ends_with_the_measurement():
    with Sampled("rails", "r", lambda: 1.0, every_s=0.001) as found:
        thread = found._thread
        before = found.joules()
        assert found.joules() >= before
    assert not thread.is_alive()


class Library:
    def __init__(self, energy=None, watts=None):
        self.energy, self.watts = energy, watts

    def nvmlDeviceGetTotalEnergyConsumption(self, _):  # noqa: N802
        if self.energy is None:
            raise RuntimeError("Not Supported")
        return self.energy

    def nvmlDeviceGetPowerUsage(self, _):  # noqa: N802
        if self.watts is None:
            raise RuntimeError("Not Supported")
        return self.watts


def test_gpu_counter_then_sampled_power_then_a_reason(tmp_path):
    library = Library(energy=5_000_000)
    found = meter("cuda:0", root=tmp_path, gpu=Gpu(library, 0))
    assert isinstance(found, GpuCounter)
    assert found.joules() == 5000.0
    library.energy = None
    with pytest.raises(ProfileError, match="NVML: the GPU stopped telling its energy"):
        found.joules()
    sampled = meter("cuda:0", root=tmp_path, gpu=Gpu(Library(watts=75_000), 0))
    assert (sampled.scope, sampled._watts()) == ("GPU board", 75.0)
    assert meter("cuda:0", root=tmp_path, gpu=Gpu(Library(), 0)) == "NVML tells neither energy nor power of cuda:0"


def test_this_machine_has_a_meter_or_a_reason():
    found = meter("cpu")
    if isinstance(found, str):
        assert found and "\n" not in found
    else:
        with found:
            assert found.joules() >= 0.0
