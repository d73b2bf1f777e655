"""Run folders and what they say about the machine."""

import json
import os
import platform
from pathlib import Path

import pytest

from gptjax.config import ConfigError, configclass
from gptjax.environment import (
    accelerators_present,
    describe_environment,
    idle_devices,
    return_freed_memory,
    run_header,
    warnings,
)
from gptjax.runs import mark_done, open_run, read_done, stage_done, take_back, write_json_atomic
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.events import SETTINGS_CHANGED, read_events
from gptjax.training.integrity import file_hash


@configclass
class Inner:
    rate: float = 0.1


@configclass
class OneStage:
    mesh: MeshConfig


@configclass
class TwoStages:
    pretrain: OneStage
    ppo: OneStage


@configclass
class Averages:
    average_over: str


@configclass
class Learner:
    mesh: MeshConfig
    accumulate: int
    conventions: Averages


@configclass
class Road:
    ppo: Learner


@configclass
class Settings:
    steps: int = 3
    inner: Inner = Inner()


@configclass
class Weighted:
    weights: dict[str, float]


@configclass
class Averaging:
    average: int = 5
    save_every: int = 10


def test_a_run_can_be_resumed_but_not_changed(tmp_path):
    folder = open_run(tmp_path / "runs" / "a", Settings())
    assert json.loads((folder / "config.json").read_text())["steps"] == 3
    assert open_run(folder, Settings()) == folder
    with pytest.raises(ConfigError) as error:
        open_run(folder, Settings(steps=4, inner=Inner(rate=0.2)))
    for part in (str(folder), "steps was 3, is 4", "inner.rate was 0.1, is 0.2", "--name", "delete"):
        assert part in str(error.value)
    assert json.loads((folder / "config.json").read_text())["steps"] == 3, "a refusal must change nothing"


def test_a_start_that_failed_before_it_did_anything_binds_nobody(tmp_path):
    """The name of a run is not lost to a source that was mistyped."""
    take_back(open_run(tmp_path, Settings()))
    open_run(tmp_path, Settings(steps=4))
    (tmp_path / "metrics.jsonl").touch()
    take_back(tmp_path)
    with pytest.raises(ConfigError, match="steps was 4, is 3"):
        open_run(tmp_path, Settings())


def test_a_mapping_in_another_order_is_another_run(tmp_path):
    """The sources of a mixture are drawn by their numbers."""
    open_run(tmp_path, Weighted(weights={"a": 1.0, "b": 2.0}))
    open_run(tmp_path, Weighted(weights={"a": 1.0, "b": 2.0}))
    with pytest.raises(ConfigError, match=r"\(weights was in another order\)"):
        open_run(tmp_path, Weighted(weights={"b": 2.0, "a": 1.0}))


def test_saves_that_a_model_is_the_average_of_may_not_change(tmp_path):
    open_run(tmp_path, Averaging(average=1))
    open_run(tmp_path, Averaging(average=1, save_every=5))
    open_run(tmp_path / "averaged", Averaging())
    with pytest.raises(ConfigError, match=r"\(save_every was 10, is 5\)"):
        open_run(tmp_path / "averaged", Averaging(save_every=5))


def test_only_the_keys_that_may_change_may(tmp_path):
    open_run(tmp_path, Settings())
    with pytest.raises(ConfigError, match="inner.rate was 0.1, is 0.2"):
        open_run(tmp_path, Settings(steps=4, inner=Inner(rate=0.2)), may_change=["steps"])
    open_run(tmp_path, Settings(steps=4, inner=Inner(rate=0.2)), may_change=["steps", "inner"])
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 4


def computed(folder, mesh, accumulate=1, averaged="minibatch"):
    choices = {"accumulate": accumulate, "conventions": Averages(average_over=averaged)}
    return open_run(folder, Road(ppo=Learner(mesh=MeshConfig(data=mesh), **choices)))


def test_where_a_run_is_computed_may_change_and_is_said(tmp_path, capsys):
    computed(tmp_path, 8)
    assert read_events(tmp_path) == [] and not capsys.readouterr().out
    computed(tmp_path, 2, accumulate=4)
    (noted,) = read_events(tmp_path)
    changes = ["ppo.mesh.data was 8, is 2", "ppo.accumulate was 1, is 4"]
    assert noted["event"] == SETTINGS_CHANGED and noted["changes"] == changes
    assert noted["config"] == file_hash(tmp_path / "config.json")
    assert f"goes on with other settings: {'; '.join(changes)}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"\(ppo.conventions.average_over was 'minibatch'"):
        computed(tmp_path, 1, accumulate=4, averaged="micro_batch")


def test_micro_batches_that_are_averaged_over_may_not_change(tmp_path):
    computed(tmp_path, 8, averaged="micro_batch")
    with pytest.raises(ConfigError, match=r"\(ppo.accumulate was 1, is 2\)"):
        computed(tmp_path, 4, accumulate=2, averaged="micro_batch")
    assert read_events(tmp_path) == []


def test_a_finished_run_keeps_the_mesh_that_it_had(tmp_path):
    mark_done(computed(tmp_path, 8), {})
    computed(tmp_path, 1)
    assert json.loads((tmp_path / "config.json").read_text())["ppo"]["mesh"]["data"] == 8
    assert read_events(tmp_path) == []


def test_the_environment_is_noted_at_every_start_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_TOKEN", "secret-value-1234")
    open_run(tmp_path, Settings())
    open_run(tmp_path, Settings())
    text = (tmp_path / "environment.txt").read_text()
    assert "secret-value-1234" not in text and "SOME_API_TOKEN" not in text
    assert os.uname().nodename not in text
    for line in ("command: ", "date: ", "python: ", "backend: cpu", "devices: 8 x cpu", "git: ", "jax=="):
        assert text.count(f"\n{line}") + text.startswith(line) == 2, line


def test_done_is_written_last_and_whole(tmp_path, monkeypatch):
    assert not stage_done(tmp_path)
    with pytest.raises(ConfigError, match="has not finished"):
        read_done(tmp_path)
    mark_done(tmp_path, {"seconds": 1.5, "tokens": 7})
    assert stage_done(tmp_path) and read_done(tmp_path) == {"seconds": 1.5, "tokens": 7}


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json_atomic(path, {"a": 1})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json_atomic(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_header_names_backend_devices_and_versions():
    import jax

    header = run_header()
    assert "backend cpu" in header and "8 x cpu" in header and f"jax {jax.__version__}" in header
    json.dumps(describe_environment())


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_accelerators_are_seen_by_their_devices(tmp_path):
    assert accelerators_present(tmp_path, {}) == []
    card = tmp_path / "sys/bus/pci/devices/0000:00:04.0"
    write(card / "vendor", "0x1ae0\n")
    write(card / "device", "0x0042\n")
    assert accelerators_present(tmp_path, {}) == [], "a network card of the same maker is no TPU"
    write(card / "device", "0x0063\n")
    assert accelerators_present(tmp_path, {}) == ["TPU"]
    write(tmp_path / "dev/nvidia0")
    assert accelerators_present(tmp_path, {}) == ["NVIDIA GPU", "TPU"]
    assert accelerators_present(tmp_path / "empty", {"TPU_NAME": "pod"}) == ["TPU"]


def test_an_idle_accelerator_is_warned_of_with_the_remedy(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    versions = {"jaxlib": "0.10.2"}
    assert warnings("gpu", ["NVIDIA GPU"], versions) == []
    assert warnings("cpu", [], versions) == []
    (gpu,) = warnings("cpu", ["NVIDIA GPU"], versions)
    assert "has a NVIDIA GPU" in gpu and "ACCELERATOR=cuda12 ./launch.sh quickstart" in gpu
    (tpu,) = warnings("cpu", ["TPU"], versions)
    assert "ACCELERATOR=tpu ./launch.sh quickstart" in tpu
    (plugin,) = warnings("gpu", [], {**versions, "jax-cuda13-plugin": "0.7.2"})
    assert "jax-cuda13-plugin 0.7.2 does not fit jaxlib 0.10.2" in plugin and "ACCELERATOR=cuda13" in plugin
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "JAX_PLATFORMS=cpu is set" in warnings("cpu", ["TPU"], versions)[0]


def test_devices_that_no_mesh_uses_are_warned_of():
    small, large = OneStage(mesh=MeshConfig(data=2)), OneStage(mesh=MeshConfig(data=2, fsdp=2))
    (warning,) = idle_devices(TwoStages(pretrain=small, ppo=large), "gpu", 8)
    assert "has 8 devices, but the run uses 4: raise pretrain.mesh.data or ppo.mesh.data" in warning
    assert (
        idle_devices(large, "gpu", 4)
        == idle_devices(large, "cpu", 8)
        == idle_devices(Settings(), "gpu", 8)
        == []
    )


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/run cannot be made .*: choose another --runs or --name"):
        open_run(tmp_path / "file" / "run", Settings())


def test_freed_memory_is_returned_to_the_system():
    def resident():
        return os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[1])

    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc keeps freed memory, and gives it back when asked")
    pieces = [bytes(100_000) for _ in range(2000)]  # too small for mappings of their own
    del pieces[:-1]  # the last lies above the others
    before = resident()
    return_freed_memory()
    assert before - resident() > 100e6
