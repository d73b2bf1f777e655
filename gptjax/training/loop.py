"""The loop around a step: resume, log, evaluate, save, stop cleanly."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from gptjax.errors import INTERNAL, RESUBMIT, UserError
from gptjax.training.checkpoint import Checkpoints
from gptjax.training.events import EventLog
from gptjax.training.goodput import Goodput, earlier_seconds
from gptjax.training.integrity import file_hash
from gptjax.training.interventions import batches_left_out, pass_over
from gptjax.training.metrics import MetricsWriter, Progress, peak_flops_per_device, seconds_spent
from gptjax.training.stopping import StopSignal
from gptjax.training.watchdog import Watchdog, linger_of

SKIPS_ALLOWED = 3


class TrainingStopped(UserError):
    """Training cannot go on by itself; the message says why and what to do."""

    exit_code = INTERNAL


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
        updates: optimiser updates of a step, one after the other.
        keep: how many of the newest checkpoints are kept.
        hang_after: seconds without a finished step after which the run is ended, at least; see `Watchdog`.
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
    updates: int = 1
    keep: int = 2
    hang_after: float = 120.0


def peak_flops(devices: int) -> float | None:
    """Peak FLOP/s of the first `devices` devices together; None where the table does not know them."""
    peak = peak_flops_per_device(jax.devices()[0].device_kind)
    return None if peak is None else peak * devices


class Journal:
    """What the loop writes down: metrics, progress, events and where the time went.

    Args:
        settings: of the loop.
        start: the step that is gone on from.
        about: further facts of this start.
    """

    def __init__(self, settings: LoopSettings, start: int, about: dict[str, str]):
        self._settings, folder = settings, settings.folder
        self._skipped_before, self._skipping_since = 0, 0
        now = time.monotonic()
        # `started` is set back by what earlier starts took.
        began = now if settings.started is None else min(now, settings.started + seconds_spent(folder))
        wall = time.time() - (now - began)
        self.time = Goodput(earlier_seconds(folder, start, wall), began)
        self.events = EventLog(folder)
        self.events.add("start", stage=settings.stage, step=start, began=round(wall, 3), **about)
        self._writer = MetricsWriter(folder, settings.started)
        self._writer.truncate_after(start)
        self.progress = Progress(
            settings.steps,
            settings.stage,
            settings.tokens_per_step,
            settings.flops_per_token,
            peak_flops(settings.devices),
        )

    def log(self, number: int, metrics) -> None:
        """Waits for the metrics of a step and writes them.

        Raises:
            TrainingStopped: three updates in a row were left out.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._writer.write(number, values, self._settings.stage)
        self.progress.update(number, values)
        skipped = int(values.get("skipped", 0.0))
        self.time.step("skipped" if skipped or "left_out" in values else "")
        if skipped:
            self._skipped(number, skipped, values)
        self._skipped_before = skipped

    def _skipped(self, number: int, skipped: int, values: dict[str, float]) -> None:
        stage, norm = self._settings.stage, str(values.get("gradient_norm"))
        self.events.add("skipped", step=number, batch=number, gradient_norm=norm, in_a_row=skipped)
        what = "changed nothing" if self._settings.updates == 1 else "left an update out"
        print(f"{stage}: step {number} {what} (gradient norm {norm}), batch {number}", flush=True)
        if not self._skipped_before or skipped <= self._skipped_before:  # a new series
            self._skipping_since = number - (skipped - 1) // self._settings.updates
        if skipped >= SKIPS_ALLOWED:
            first = self._skipping_since
            raise TrainingStopped(
                f"{stage} stopped at step {number}: the loss or gradient was a spike or not finite "
                f"{SKIPS_ALLOWED} times in a row; begin anew with a lower learning rate, or go back and "
                f"leave batches out, such as --rewind-to {max(first - 1, 0)} --skip-batches "
                f"{first}:{number + 1}"
            )

    def saved(self, number: int) -> None:
        """Notes that a checkpoint is being written, and where the time went until then."""
        record = self.time.record()
        goodput = record.pop("goodput")
        self.events.add("saved", stage=self._settings.stage, step=number, goodput=goodput, seconds=record)
        self._writer.curve(number, "goodput", goodput, self._settings.stage)

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()


def run_loop(
    state, step: Callable, batch_at: Callable, key: jax.Array, settings: LoopSettings, evaluate=None
):
    """Runs `step` until `settings.steps`, from the newest whole checkpoint if there is one.

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
        TrainingStopped: three updates in a row were not finite, or spikes.
        SaveFailed: two checkpoints in a row could not be written.
    """
    about = {"config": file_hash(settings.folder / "config.json")}
    checkpoints = Checkpoints(
        settings.folder / "checkpoints",
        settings.identity,
        settings.keep,
        about=about,
        notice=EventLog(settings.folder).add,
    )
    restored = checkpoints.restore_latest(state)
    state = state if restored is None else restored
    start = int(state.step)
    if start:
        print(f"{settings.stage}: resumed at step {start} of {settings.steps}", flush=True)
    journal, left_out = Journal(settings, start, about), batches_left_out(settings.folder)
    linger = linger_of(jax.process_index(), jax.process_count())
    watchdog = Watchdog(settings.folder, jax.process_index(), settings.hang_after, linger=linger)

    def save(number, state, at_once):
        with watchdog.patience(), journal.time.during("saving"):
            checkpoints.save(number, state)
        journal.saved(number)
        if at_once:
            with watchdog.patience():
                if not checkpoints.settle():
                    checkpoints.save(number, state)
                checkpoints.settle()

    pending = None
    try:
        with StopSignal() as stop, journal.progress, watchdog:
            for number in range(start + 1, settings.steps + 1):
                if number in left_out:
                    state, metrics = pass_over(state)
                else:
                    state, metrics = step(state, batch_at(number - 1), key)
                if pending:
                    journal.log(*pending)
                    watchdog.beat()
                pending = (number, metrics)
                last, stopping = number == settings.steps, stop.asked()
                if evaluate and settings.eval_every and (last or number % settings.eval_every == 0):
                    jax.block_until_ready(metrics)
                    with watchdog.patience(), journal.time.during("evaluating"):
                        pending = (number, metrics | jax.device_get(evaluate(state)))
                checkpoints.poll()
                if stopping or last or number % settings.save_every == 0:
                    journal.log(*pending)
                    pending = None
                    save(number, state, at_once=stopping or last)
                if stopping:
                    message = f"{settings.stage}: saved at step {number} after SIGTERM; run again to resume"
                    print(message, flush=True)
                    raise SystemExit(RESUBMIT)
    finally:
        checkpoints.close()
        journal.close()
    return state
