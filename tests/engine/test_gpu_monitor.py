"""The GPU monitor, with a stand-in for NVML, which this machine may not have."""

import sys
import types

import pytest

from pipeline import config
from pipeline.engine import Engine, Usage
from pipeline.engine.gpu_monitor import GpuMonitor, GpuSampler
from tests.support.processes import wait_until


def test_gpu_utilisation_is_the_mean_over_devices_and_samples(monkeypatch):
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUtilizationRates=lambda device: types.SimpleNamespace(gpu=(20, 80)[device]),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    watcher = GpuSampler(interval_s=0.001)
    wait_until(lambda: watcher.sums()[1] >= 2)
    watcher._stop.set()
    total, count = watcher.sums()
    assert total / count == pytest.approx(0.5)
    assert count >= 2


def test_a_machine_without_nvml_is_not_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuSampler().sums() == (0.0, 0)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_cluster_without_gpus_is_not_monitored():
    with Engine(config.Engine()) as engine, GpuMonitor(engine) as watch:
        assert watch.mean() is None


def test_gpu_utilisation_is_averaged_by_time():
    usage = Usage()
    usage.add_generated(100, 10.0, None)
    usage.add_generated(100, 10.0, 0.5)
    usage.add_generated(100, 20.0, 1.0)
    assert usage.generated_tokens == 300
    assert usage.gpu_utilisation == pytest.approx((0.5 * 10 + 1.0 * 20) / 40)
