"""metrics.jsonl, TensorBoard files and the progress line."""

import io
import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.training.metrics import MetricsWriter, Progress, peak_flops_per_device, read_metrics


def rows_without_time(path):
    return [{k: v for k, v in row.items() if k not in ("time", "elapsed")} for row in read_metrics(path)]


def test_a_line_holds_step_stage_time_and_plain_numbers(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(3, {"loss": jnp.float32(0.5), "objective/kl": np.float64(0.7), "count": 2}, "ppo")
    writer.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert list(row) == ["step", "stage", "time", "elapsed", "loss", "objective/kl", "count"]
    assert row | {"time": 0, "elapsed": 0} == {
        "step": 3,
        "stage": "ppo",
        "time": 0,
        "elapsed": 0,
        "loss": 0.5,
        "objective/kl": 0.7,
        "count": 2.0,
    }


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"a": math.nan, "b": -math.inf}, "pretrain")
    line = (tmp_path / "metrics.jsonl").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(line, parse_constant=refuse)["b"] == "-inf"
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row["a"]) and row["b"] == -math.inf and row["stage"] == "pretrain"


def test_a_resumed_file_equals_the_uninterrupted_one(tmp_path):
    def write(folder, steps):
        writer = MetricsWriter(folder)
        for step in steps:
            writer.write(step, {"loss": 1 / step}, "pretrain")
        writer.close()

    write(tmp_path / "whole", range(1, 11))
    write(tmp_path / "cut", range(1, 8))
    path = tmp_path / "cut" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 8, "stage": "pre')  # killed in the middle of a line
    MetricsWriter(tmp_path / "cut").truncate_after(5)
    write(tmp_path / "cut", range(6, 11))
    assert rows_without_time(path) == rows_without_time(tmp_path / "whole" / "metrics.jsonl")


def test_a_line_cut_short_is_dropped_even_at_the_end(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 1.0}, "x")
    writer.path.write_text(writer.path.read_text() + '{"step": 2')
    assert len(read_metrics(writer.path)) == 1
    writer.truncate_after(9)
    assert writer.path.read_text().count("\n") == 1 and writer.path.read_text().endswith("}\n")


def test_tensorboard_files_hold_the_same_numbers(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    writer = MetricsWriter(tmp_path)
    writer.write(4, {"loss": 0.25}, "pretrain")
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, values = file.read_bytes(), {}
    while data:  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        values |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        data = data[12 + length + 4 :]
    assert values == {(4, "pretrain/loss"): 0.25}


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    writer, out = MetricsWriter(tmp_path / "run"), io.StringIO()
    writer.truncate_after(-1)
    writer.write(1, {"loss": 1.0}, "x")
    with Progress(1, "x", 1, stream=out) as progress:
        progress.update(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists() and out.getvalue() == ""


def make_progress(seconds_per_step, out, **options):
    clock = itertools.count(0, seconds_per_step).__next__
    return Progress(100, "pretrain", 500, stream=out, clock=clock, **options)


def test_plain_lines_come_every_ten_seconds_and_at_the_end():
    out = io.StringIO()
    with make_progress(2, out) as progress:
        for step in range(1, 101):
            progress.update(step, {"loss": 1.0})
    steps = [int(line.split()[1].split("/")[0]) for line in out.getvalue().splitlines()]
    assert steps == [*range(1, 100, 5), 100]


def test_the_first_step_does_not_count_for_the_speed():
    out = io.StringIO()
    progress = make_progress(20, out, flops_per_token=4e3, peak_flops=1e6)
    with progress:
        progress.update(41, {"loss": 2.0})  # resumed; how long this step took is not known
        progress.update(42, {"loss": 1.23456})
    first, second = out.getvalue().splitlines()
    assert first == "pretrain 41/100  loss 2"
    # One step of 500 tokens in 20 s: 25 tokens/s, 1e5 of 1e6 FLOP/s, 58 steps left.
    assert second == "pretrain 42/100  loss 1.235  25 tokens/s  MFU 10.0 %  ETA 0:19:20"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_live_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    with Progress(2, "reward", 10, stream=out) as progress:
        progress.update(1, {"loss": 0.5})
        progress.update(2, {"loss": 0.25})
    assert "reward 2/2  loss 0.25" in out.getvalue() and "\x1b[" in out.getvalue()


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peak_flops(kind, peak):
    assert peak_flops_per_device(kind) == peak
