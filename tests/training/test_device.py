"""What auto means on a device, on devices that are only described."""

import os
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from drloss.errors import UserError
from drloss.training.config import AUTO, OPTIONS, Config, from_json, override, parse_value, to_json
from drloss.training.device import DeviceConfig, for_device
from drloss.training.presets import PRESETS
from drloss.training.resume import changed_settings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """A function that describes the GPU and the cores of a machine."""

    def describe(memory=80e9, capability=(9, 0), cores=64):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)

    describe()
    return describe


def chosen(config):
    return config.precision, config.micro_batch, config.channels_last, config.workers


@pytest.mark.parametrize("name", PRESETS)
def test_a_cpu_has_what_it_had_before(name):
    preset = PRESETS[name]
    found = for_device(preset, CPU)
    own = {"cpu": 8, "laptop": 16, "demo": 16}.get(name, 2)
    assert chosen(found) == ("fp32", own, name in ("cpu", "laptop", "demo"), 2)
    given = {"precision": "fp32", "micro_batch": own, "channels_last": found.channels_last, "workers": 2}
    assert to_json(found) == to_json(override(preset, given))


def test_a_large_gpu_is_kept_busy(gpu):
    assert chosen(for_device(PRESETS["r50_1x"], GPU)) == ("bf16", 16, True, 12)
    assert chosen(for_device(PRESETS["r50_1x"], GPU, share=2)) == ("bf16", 2, True, 12)


def test_smaller_gpus_take_fewer_images_that_still_make_a_batch(gpu):
    gpu(memory=25e9)
    assert for_device(PRESETS["r50_1x"], GPU).micro_batch == 4  # 6 do not divide 16
    assert for_device(override(PRESETS["r50_1x"], {"precision": "fp32"}), GPU).micro_batch == 2
    gpu(memory=4e9, capability=(7, 5), cores=3)
    assert chosen(for_device(PRESETS["r50_1x"], GPU)) == ("fp32", 2, True, 3)
    assert for_device(PRESETS["r50_1x"], GPU, share=3).micro_batch == 1


def test_cores_are_shared_by_the_processes_of_a_machine(gpu, monkeypatch):
    gpu(cores=32)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert for_device(PRESETS["r50_1x"], GPU).workers == 8


def test_a_loss_that_is_pooled_over_the_micro_batch_keeps_the_papers(gpu):
    for loss, images in (("focal", 2), ("dr:scope=pooled", 2), ("focal:scope=per_image", 16), ("dr", 16)):
        assert for_device(override(PRESETS["r50_1x"], {"loss": loss}), GPU).micro_batch == images


def test_what_is_given_stays(gpu):
    given = {"precision": "fp16", "micro_batch": 8, "channels_last": False, "workers": 0}
    assert chosen(for_device(override(PRESETS["r50_1x"], given), GPU)) == ("fp16", 8, False, 0)


def test_a_resumed_run_keeps_what_it_had(gpu):
    before = {"precision": "fp32", "micro_batch": 4, "channels_last": False, "workers": 2}
    assert chosen(for_device(Config(), GPU, so_far=before)) == ("fp32", 4, False, 12)
    assert for_device(Config(), GPU, share=2, so_far=before).micro_batch == 4  # a step takes what there is
    assert for_device(Config(), GPU, share=6, so_far=before).micro_batch == 6
    with pytest.raises(UserError, match="precision must be one of"):
        for_device(Config(), GPU, so_far={"precision": "fp8"})


def test_auto_is_no_change_of_a_run(gpu):
    ran = to_json(for_device(PRESETS["r50_1x"], GPU))
    assert changed_settings(ran, to_json(PRESETS["r50_1x"])) == {}
    assert changed_settings(to_json(PRESETS["r50_1x"]), ran) == {}
    other = to_json(override(PRESETS["r50_1x"], {"precision": "fp32"}))
    assert changed_settings(ran, other) == {"precision": ("bf16", "fp32")}


def test_auto_is_read_written_and_refused_where_it_means_nothing():
    assert AUTO == ("micro_batch", "channels_last", "workers")
    assert [OPTIONS[name] for name in AUTO] == [int, bool, int]
    for name in AUTO:
        assert parse_value(name, "auto") == "auto"
    assert from_json(to_json(Config()), "config.json") == Config()
    with pytest.raises(UserError, match="micro_batch must be of type int or auto, got 'all'"):
        override(Config(), {"micro_batch": "all"})
    with pytest.raises(UserError, match="batch_size must be of type int, got 'auto'"):
        override(Config(), {"batch_size": "auto"})
    with pytest.raises(UserError, match="micro_batch must be positive"):
        override(Config(), {"micro_batch": 0})


def test_the_settings_of_a_device_are_a_configuration():
    assert isinstance(for_device(Config(), CPU), DeviceConfig)
    with mock.patch.dict(os.environ, LOCAL_WORLD_SIZE="8"):
        assert for_device(Config(), CPU).workers == 2
