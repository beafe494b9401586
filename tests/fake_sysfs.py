"""Trees of small files as the kernel of a Jetson, of a laptop and of a machine without sensors shows them."""

from __future__ import annotations

from pathlib import Path


def plant(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def _cpu(index: int, *, now: int, low: int, high: int, governor: str) -> dict[str, object]:
    folder = f"sys/devices/system/cpu/cpu{index}/cpufreq"
    return {
        f"{folder}/scaling_cur_freq": now,
        f"{folder}/scaling_min_freq": low,
        f"{folder}/scaling_max_freq": high,
        f"{folder}/scaling_governor": governor,
    }


def orin_nano(root: Path) -> Path:
    """JetPack 6, 15 W, clocks not held; rails by an INA3221, whose third channel is not wired in this one."""
    ina = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    files: dict[str, object] = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=7W >\n"
        "< PM_CONFIG DEFAULT=0 >",
        "var/lib/nvpmodel/status": "pmode:0000",
        "sys/class/devfreq/17000000.gpu/cur_freq": 306_000_000,
        "sys/class/devfreq/17000000.gpu/min_freq": 306_000_000,
        "sys/class/devfreq/17000000.gpu/max_freq": 624_750_000,
        "sys/kernel/debug/bpmp/debug/clk/emc/rate": 2_133_000_000,
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": 48_250,
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
        "sys/class/thermal/thermal_zone1/temp": 47_000,
        "sys/class/thermal/cooling_device0/type": "pwm-fan",
        "sys/class/thermal/cooling_device0/cur_state": 3,
        "sys/class/thermal/cooling_device1/type": "cpu-throttle-alert",
        "sys/class/thermal/cooling_device1/cur_state": 0,
        "sys/class/hwmon/hwmon0/name": "soctherm_oc",
        "sys/class/hwmon/hwmon0/oc1_event_cnt": 0,
        f"{ina}/name": "ina3221",
        f"{ina}/in1_label": "VDD_IN",
        f"{ina}/in1_input": 5000,
        f"{ina}/curr1_input": 1000,
        f"{ina}/in2_label": "VDD_CPU_GPU_CV",
        f"{ina}/in2_input": 5000,
        f"{ina}/curr2_input": 200,
        f"{ina}/in3_label": "NC",
        f"{ina}/in3_input": 0,
        f"{ina}/curr3_input": 0,
    }
    for index in (0, 1):
        files |= _cpu(index, now=1_190_400, low=729_600, high=1_510_400, governor="schedutil")
    return plant(root, files)


def laptop(root: Path) -> Path:
    """Two processors, one package and its memory under RAPL, a platform profile."""
    files: dict[str, object] = {
        "sys/firmware/acpi/platform_profile": "balanced",
        "sys/class/powercap/intel-rapl:0/name": "package-0",
        "sys/class/powercap/intel-rapl:0/energy_uj": 900_000_000,
        "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 1_000_000_000,
        "sys/class/powercap/intel-rapl:0:0/name": "core",
        "sys/class/powercap/intel-rapl:0:0/energy_uj": 1,
        "sys/class/powercap/intel-rapl:0:1/name": "dram",
        "sys/class/powercap/intel-rapl:0:1/energy_uj": 50_000_000,
        "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
        "sys/class/powercap/intel-rapl-mmio:0/energy_uj": 7,
        "sys/class/hwmon/hwmon3/name": "coretemp",
        "sys/class/hwmon/hwmon3/temp1_input": 61_000,
        "sys/class/hwmon/hwmon3/temp2_input": 64_000,
        "sys/class/hwmon/hwmon4/name": "nvme",
        "sys/class/hwmon/hwmon4/temp1_input": 90_000,
    }
    for index in (0, 1):
        files |= _cpu(index, now=2_000_000 + 1_000_000 * index, low=400_000, high=4_000_000, governor="powersave")
        files[f"sys/devices/system/cpu/cpu{index}/thermal_throttle/package_throttle_count"] = 12
        files[f"sys/devices/system/cpu/cpu{index}/thermal_throttle/core_throttle_count"] = 4
    return plant(root, files)
