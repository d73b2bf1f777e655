"""What a run says about itself: `metrics.jsonl`, TensorBoard files and the progress line."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

import jax

# Dense bfloat16 FLOP/s of one device, from the makers' data sheets; the first name found in `device_kind`.
_PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v6": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}
# What the names of numbers that stand for bits begin with.
DIGEST = "digest/"


def peak_flops_per_device(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of a device by its `device_kind`; None where it is not known, as on CPU."""
    return next((flops for name, flops in _PEAK_FLOPS.items() if name in device_kind), None)


class MetricsWriter:
    """Writes metrics as lines of `metrics.jsonl` and as TensorBoard files; only process 0 writes.

    A line is `{"step", "stage", "time" (seconds since 1970), "elapsed" (seconds the stage has worked), name:
    number, ...}`. Numbers that are not finite are written as the strings "nan", "inf" and "-inf", because
    JSON has no such numbers.

    Args:
        folder: of the run.
        started: `time.monotonic()` when the stage began, less what interrupted attempts took; None is now.
    """

    def __init__(self, folder: str | Path, started: float | None = None):
        self.path = Path(folder) / "metrics.jsonl"
        self._started = time.monotonic() if started is None else started
        self._tensorboard = None
        self._purge_step = None
        self._active = jax.process_index() == 0
        if self._active:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def truncate_after(self, step: int) -> None:
        """Drops the lines of an interrupted attempt: those after `step` and a last line cut short by a kill.

        Call it with the restored step when a stage resumes, and with -1 when it starts from nothing.
        """
        self._purge_step = step + 1
        if not self._active or not self.path.exists():
            return
        lines = self.path.read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text("".join(kept), "utf-8")
        os.replace(unfinished, self.path)

    def write(self, step: int, metrics: Mapping[str, float], stage: str) -> None:
        """Appends one line; values may be Python, numpy or JAX scalars."""
        if not self._active:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        elapsed = round(time.monotonic() - self._started, 3)
        line = {"step": int(step), "stage": stage, "time": round(time.time(), 3), "elapsed": elapsed}
        line |= {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in numbers.items():
            if name.startswith(DIGEST):
                continue  # of bits: no curve says anything about them
            self._events().add_scalar(f"{stage}/{name}", value, int(step))
        self._events().flush()

    def curve(self, step: int, name: str, value: float, stage: str) -> None:
        """Adds a point of a curve to TensorBoard alone: what differs from start to start is no metric."""
        if self._active:
            self._events().add_scalar(f"{stage}/{name}", value, int(step))

    def close(self) -> None:
        """Closes the TensorBoard file."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _events(self):
        if self._tensorboard is None:
            from tensorboardX import SummaryWriter

            # The purge tells TensorBoard to forget what an interrupted attempt wrote at these steps.
            self._tensorboard = SummaryWriter(
                str(self.path.parent / "tensorboard"), purge_step=self._purge_step
            )
        return self._tensorboard


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a `metrics.jsonl`, with "nan" and "inf" as floats; a last line cut short is left out."""
    lines = Path(path).read_text("utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: _number(name, value) for name, value in row.items()} for row in rows]


def seconds_spent(folder: str | Path) -> float:
    """Seconds that earlier attempts at the stage in this folder worked, as far as they logged them."""
    path = Path(folder) / "metrics.jsonl"
    return max((row.get("elapsed", 0.0) for row in read_metrics(path)), default=0.0) if path.exists() else 0.0


def _number(name: str, value: object) -> object:
    return float(value) if isinstance(value, str) and name != "stage" else value


class Progress:
    """The progress of a stage: a live line on a terminal, a plain line about every ten seconds elsewhere.

    Shows the step, the metrics, tokens per second, the model-FLOPs utilisation where the peak is known, and
    the time left. The first step, which compiles, does not count for the speed. Only process 0 speaks.

        with Progress(1000, "pretrain", tokens_per_step=16 * 256) as progress:
            progress.update(step, {"loss": loss})

    Args:
      total_steps: steps of the stage.
      stage: its name.
      tokens_per_step: tokens in a global batch.
      flops_per_token: FLOPs of the forward and backward pass per token.
      peak_flops: peak FLOP/s of all devices together.
      shown: the metrics to show, in this order, where they are given.
      every: seconds between two plain lines.
    """

    def __init__(
        self,
        total_steps: int,
        stage: str,
        tokens_per_step: float,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        *,
        shown: tuple[str, ...] = ("loss", "accuracy", "objective/scores", "objective/kl"),
        every: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total_steps, self.stage, self.tokens_per_step = total_steps, stage, tokens_per_step
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.shown, self.every, self.clock = shown, every, clock
        self.stream = stream or sys.stdout
        self._start: tuple[int, float] | None = None
        self._last_line = -math.inf
        self._live = None
        self._active = jax.process_index() == 0

    def __enter__(self) -> "Progress":
        if self._active and self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self.stream), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Says that `step` steps are finished; metrics not shown are not fetched from the device."""
        if not self._active:
            return
        now = self.clock()
        if self._start is None:
            self._start = (step, now)
        due = step >= self.total_steps or now - self._last_line >= self.every
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(self.line(step, metrics, now), no_wrap=True, overflow="ellipsis"))
        elif due:
            self._last_line = now
            print(self.line(step, metrics, now), file=self.stream, flush=True)

    def line(self, step: int, metrics: Mapping[str, float], now: float) -> str:
        """The progress as one line of text."""
        parts = [f"{self.stage} {step}/{self.total_steps}"]
        parts += [f"{name} {float(metrics[name]):.4g}" for name in self.shown if name in metrics]
        speed = self.tokens_per_second(step, now)
        if speed:
            parts.append(f"{speed:,.0f} tokens/s")
            if self.flops_per_token and self.peak_flops:
                parts.append(f"MFU {100 * speed * self.flops_per_token / self.peak_flops:.1f} %")
            left = int((self.total_steps - step) * self.tokens_per_step / speed)
            parts.append(f"ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}")
        return "  ".join(parts)

    def tokens_per_second(self, step: int, now: float) -> float | None:
        """Tokens per second since the first finished step; None before the second."""
        if self._start is None or step <= self._start[0] or now <= self._start[1]:
            return None
        return (step - self._start[0]) * self.tokens_per_step / (now - self._start[1])
