"""A logged step of a PPO run made again: its rollout, gradients and update, bit for bit.

The state before the step comes from the newest checkpoint before it, or from the start of the run, which the
configuration and the base models give; the iterations between are run again. Every iteration logs digests of
what it made (`training/digest.py`), and every one that is run again is compared.
"""

import json
from pathlib import Path

from gptjax.config import ConfigError, from_json
from gptjax.environment import usable_cores
from gptjax.sharding.mesh import make_mesh
from gptjax.stages.ppo import PpoConfig, Prepared, prepare
from gptjax.stages.ppo_iteration import DIGESTS, PpoState
from gptjax.training.checkpoint import Checkpoints
from gptjax.training.interventions import pass_over
from gptjax.training.metrics import read_metrics


def replay(folder: Path, step: int) -> bool:
    """Makes a logged step again and says whether all digests on the way to it are equal.

    Prints what is done, and of a difference the step and the first quantity that differs. The run folder is
    left as it is, and may belong to a run under way.

    Args:
        folder: of a PPO run.
        step: as in `metrics.jsonl`, from 1.

    Raises:
        ConfigError: the folder holds no PPO run, the step is not logged, or logged without digests.
    """
    config, rows = read_run(folder)
    logged, whole_rows = {row["step"]: digests(row) for row in rows}, {row["step"]: row for row in rows}
    if step not in logged:
        known = f"steps {min(logged)} to {max(logged)}" if logged else "no step"
        raise ConfigError(f"{folder / 'metrics.jsonl'} logs {known}: choose --step among them, not {step}")
    if not logged[step]:
        raise ConfigError(f"step {step} of {folder} was logged without digests: it cannot be compared")
    ready = prepare(config, make_mesh(config.mesh))
    state = state_before(step, folder, ready)
    first = int(state.step) + 1
    print(f"replay: from step {first - 1}, {step - first + 1} to run", flush=True)
    for number in range(first, step + 1):
        if "left_out" in whole_rows[number]:
            state, _ = pass_over(state)
            continue
        state, metrics = ready.iteration(state, ready.batch_at(number - 1), ready.key)
        made = digests(metrics)
        different = next((name for name, was in logged[number].items() if made.get(name) != was), None)
        if different:
            print(
                f"replay: step {number} differs, first in {different}: {logged[number][different]} was "
                f"logged, {made.get(different)} came out; digests are those of one machine, number of cores "
                f"and devices and set of versions, which {folder / 'environment.txt'} names; this replay has "
                f"{usable_cores()} cores"
            )
            return False
        print(f"replay: step {number} of {step} is equal ({', '.join(made)})", flush=True)
    return True


def read_run(folder: Path) -> tuple[PpoConfig, list[dict]]:
    """The configuration and the metrics of a PPO run.

    Raises:
        ConfigError: there is none.
    """
    file = folder / "config.json"
    if not file.exists():
        raise ConfigError(f"there is no run in {folder}: name a folder that gptjax train has made")
    config = from_json(json.loads(file.read_text("utf-8")))
    if not isinstance(config, PpoConfig):
        inside = [path.parent for path in sorted(folder.glob("*/config.json")) if "ppo" in path.parent.name]
        instead = f", such as {inside[0]}" if inside else ""
        raise ConfigError(
            f"{folder} holds a run of {type(config).__name__}, and only those of PpoConfig log what a replay "
            f"needs: name the folder of a PPO run{instead}"
        )
    if not (folder / "metrics.jsonl").exists():
        raise ConfigError(f"the run in {folder} has not logged a step yet")
    return config, read_metrics(folder / "metrics.jsonl")


def digests(row: dict) -> dict[str, str]:
    """The digests among an iteration's metrics, in hexadecimal, in the order of what they are of."""
    return {name: f"{int(row[name]):08x}" for name in DIGESTS if name in row}


def state_before(step: int, folder: Path, ready: Prepared) -> PpoState:
    """The newest kept state that `step` can be reached from."""
    if not (folder / "checkpoints").exists():
        return ready.start
    checkpoints = Checkpoints(folder / "checkpoints", ready.identity, tidy=False)
    before = [kept for kept in checkpoints.steps() if kept < step]
    state = checkpoints.restore(before[-1], ready.start) if before else ready.start
    checkpoints.close()
    return state
