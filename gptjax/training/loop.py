"""The loop around a step: resume, log, evaluate, save, stop cleanly."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from gptjax.errors import RESUBMIT, UserError
from gptjax.training.checkpoint import Checkpoints
from gptjax.training.metrics import MetricsWriter, Progress, peak_flops_per_device

SKIPS_ALLOWED = 3


class TrainingStopped(UserError):
    """Training cannot go on by itself; the message says why and what to do."""

    exit_code = 70


class StopSignal:
    """Notes SIGTERM so that the loop can save first; a second one leaves at once."""

    def __init__(self):
        self.received = False

    def __enter__(self):
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, *_):
        if self.received:
            os._exit(RESUBMIT)
        self.received = True


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know about a stage.

    Attributes:
        stage: name in metrics and on the progress line.
        folder: the run folder.
        steps: updates in the whole run.
        save_every: steps between checkpoints.
        eval_every: steps between evaluations; 0 evaluates never.
        identity: facts every checkpoint must share, such as the tokenizer's hash.
        tokens_per_step: for tokens/s; the mean where steps differ.
        flops_per_token: for the share of the peak, where the peak is known; None shows no share.
        devices: number of devices the step runs on.
        started: see `MetricsWriter`.
        keep: how many of the newest checkpoints are kept.
    """

    stage: str
    folder: Path
    steps: int
    save_every: int
    eval_every: int
    identity: dict[str, str]
    tokens_per_step: float
    flops_per_token: float | None
    devices: int = 1
    started: float | None = None
    keep: int = 2


def peak_flops(devices: int) -> float | None:
    """Peak FLOP/s of the first `devices` devices together; None where the table does not know them."""
    peak = peak_flops_per_device(jax.devices()[0].device_kind)
    return None if peak is None else peak * devices


def run_loop(
    state, step: Callable, batch_at: Callable, key: jax.Array, settings: LoopSettings, evaluate=None
):
    """Runs `step` until `settings.steps`, from the newest checkpoint if there is one.

    Metrics of step n - 1 are fetched after step n has been dispatched, so that logging never makes the
    device wait.

    Args:
        state: the state before the first step; has an int32 `step` and a count `skipped`.
        step: `(state, batch, key) -> (state, metrics)`.
        batch_at: int step -> batch on the device; the whole position in the data.
        key: root of all randomness; the step folds its number in.
        settings: see `LoopSettings`.
        evaluate: state -> metrics, called every `eval_every` steps and after the last.

    Returns:
        the final state.

    Raises:
        SystemExit: code 75 after SIGTERM, once a checkpoint is written.
        TrainingStopped: three updates in a row were not finite.
    """
    checkpoints = Checkpoints(settings.folder / "checkpoints", settings.identity, settings.keep)
    restored = checkpoints.restore_latest(state)
    state = state if restored is None else restored
    start = int(state.step)
    if start:
        print(f"{settings.stage}: resumed at step {start} of {settings.steps}", flush=True)
    writer = MetricsWriter(settings.folder, settings.started)
    writer.truncate_after(start)
    progress = Progress(
        settings.steps,
        settings.stage,
        settings.tokens_per_step,
        settings.flops_per_token,
        peak_flops(settings.devices),
    )

    def log(number, metrics):
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        writer.write(number, values, settings.stage)
        progress.update(number, values)
        if values.get("skipped", 0.0) >= SKIPS_ALLOWED:
            raise TrainingStopped(
                f"{settings.stage} stopped at step {number}: the loss or gradient was not finite "
                f"{SKIPS_ALLOWED} times in a row; lower the learning rate or look at these steps' batches"
            )

    pending = None
    try:
        with StopSignal() as stop, progress:
            for number in range(start + 1, settings.steps + 1):
                state, metrics = step(state, batch_at(number - 1), key)
                if pending:
                    log(*pending)
                pending = (number, metrics)
                last = number == settings.steps
                if evaluate and settings.eval_every and (last or number % settings.eval_every == 0):
                    pending = (number, metrics | evaluate(state))
                if stop.received or last or number % settings.save_every == 0:
                    log(*pending)
                    pending = None
                    checkpoints.save(number, state)
                if stop.received:
                    checkpoints.close()
                    message = f"{settings.stage}: saved at step {number} after SIGTERM; run again to resume"
                    print(message, flush=True)
                    raise SystemExit(RESUBMIT)
    finally:
        checkpoints.close()
        writer.close()
    return state
