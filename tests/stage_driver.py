"""Runs one stage in a process of its own, which can be made to die at a named moment."""

import importlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

# Functions, and with "()" those that a factory returns.
MOMENTS = {
    "metrics": "gptjax.training.metrics:MetricsWriter.write",  # a line is written, its step is not saved yet
    "saving": "gptjax.training.checkpoint:Checkpoints.save",  # a checkpoint is being written
    "sealing": "gptjax.training.checkpoint:write_facts",  # it is written, and has no name yet
    "handover": "gptjax.stages.handover:save_tree",  # all steps are done, the model is half handed over
    "drawing": "gptjax.stages.samples:different",  # some of a round's samples are drawn
    "samples": "gptjax.stages.online:write_jsonl_atomic",  # all are, and none is labelled
    "labels": "gptjax.stages.labels:write_jsonl_atomic",  # all are ranked; then, all rounds' are joined
    "meeting": "gptjax.stages.tournament:make_reply",  # a policy is about to reply to the held-out prompts
    # The phases of an iteration of PPO; their results are there, nothing of the iteration is saved.
    "rollout": "gptjax.stages.ppo_iteration:make_rollout()",
    "scoring": "gptjax.stages.ppo_iteration:make_score()",  # of the reference, then of the policy
    "experience": "gptjax.stages.ppo_iteration:make_experience()",
    "minibatch": "gptjax.stages.ppo_iteration:make_take()",
    "update": "gptjax.stages.ppo_iteration:compile_step()",  # of the policy and of the critic in turn
}
SLOW_IMPORTS = ["gptjax.stages.road", "grain", "orbax.checkpoint", "scipy.optimize", "tensorboardX"]

# Every stage process is forked from a server that has imported everything and started no backend.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["stage_driver", "several_processes", *SLOW_IMPORTS])


def start(config: dict, folder: Path, cache: Path, die: tuple[str, int, int] | None = None):
    """Starts the stage; returns the process.

    Args:
        config: `to_json` of the stage's configuration.
        folder: its run folder; what the stage prints goes to a `.log` file beside it.
        cache: folder for compiled programs.
        die: (moment, n, signal): the process sends itself the signal at the n-th such moment; "before ..." is
            before the function of the moment.
    """
    process = context.Process(target=_run, args=(config, folder, cache, die))
    process.start()
    return process


def command(arguments: list[str], folder: Path, cache: Path, die: tuple[str, int, int] | None = None):
    """Starts a command of the command line, whose log lies beside a run folder; returns the process."""
    process = context.Process(target=_command, args=(arguments, folder, cache, die))
    process.start()
    return process


def settle(folder: Path, cache: Path) -> None:
    """Output to the log beside the folder, programs compiled as in every process of these tests."""
    import jax

    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    # Less optimised programs compile in half the time.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _command(arguments: list[str], folder: Path, cache: Path, die) -> None:
    settle(folder, cache)
    if die:
        arrange(*die)
    from gptjax import cli, environment

    environment.use_compilation_cache = lambda: cache
    sys.exit(cli.main(arguments))


def _run(config: dict, folder: Path, cache: Path, die) -> None:
    from gptjax.config import from_json
    from gptjax.errors import UserError

    settle(folder, cache)
    if die:
        arrange(*die)
    stage = importlib.import_module(config["type"].split(":")[0])
    try:
        stage.run(from_json(config), folder)
    except UserError as error:
        print(f"error: {error}", flush=True)
        sys.exit(error.exit_code)


def arrange(moment: str, count: int, number: signal.Signals) -> None:
    """Sends the signal after the `count`-th call of the moment's function, or before it."""
    before = moment.startswith("before ")
    module, path = MOMENTS[moment.removeprefix("before ")].split(":")
    owner = importlib.import_module(module)
    *parents, name = path.removesuffix("()").split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    function, calls = getattr(owner, name), []

    def deadly(function):
        def fatal(*args, **kwargs):
            import jax

            calls.append(name)
            if before and len(calls) == count:
                os.kill(os.getpid(), number)
            result = jax.block_until_ready(function(*args, **kwargs))
            if len(calls) == count:
                os.kill(os.getpid(), number)
            return result

        return fatal

    factory = path.endswith("()")
    setattr(owner, name, (lambda *a, **k: deadly(function(*a, **k))) if factory else deadly(function))
