"""`gptjax train`: an experiment file, its keys changed by the command line, run or resumed."""

import importlib
import json
import signal
import sys
from pathlib import Path

from gptjax import environment
from gptjax.arguments import Parser
from gptjax.config import ConfigError, experiment_docstring, load_experiment, run_name, to_json
from gptjax.errors import CONFIG, RESUBMIT, USAGE, UserError
from gptjax.overrides import describe, override

OPTIONS = ("--name", "--runs", "--print-config", "--rewind-to", "--skip-batches", "--of", "--help")

_HELP = """gptjax train EXPERIMENT [--name NAME] [--runs DIR] [--print-config] [--KEY VALUE ...]

Runs an experiment file; the same command again resumes it.

  EXPERIMENT       a Python file with config(), such as experiments/quickstart.py
  --name NAME      the run's name (default: the experiment file's, such as quickstart or bert/pretrain)
  --runs DIR       the folder of all runs (default: runs)
  --print-config   print the resulting configuration as JSON and stop
  --rewind-to STEP go on from the newest checkpoint that is not after STEP
  --skip-batches A:B
                   leave out the batches of the steps A to B - 1, in this start and all later ones
  --of STAGE       the stage that the two mean, where several are unfinished, such as ppo or round-1/ppo
  --KEY VALUE      set a key of the configuration: --optimizer.learning-rate 3e-4

gptjax train EXPERIMENT --help lists the experiment's keys."""


def run_train(arguments: list[str]) -> int:
    """Prints help or a configuration, or runs the experiment; returns the exit code."""
    if arguments[:1] in ([], ["-h"], ["--help"]):
        print(_HELP)
        return 0 if arguments else 2
    experiment, *rest = arguments
    parser = Parser(prog="gptjax train", add_help=False, allow_abbrev=False)
    parser.add_argument("--name")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--print-config", action="store_true")
    parser.add_argument("--rewind-to", type=int)
    parser.add_argument("--skip-batches")
    parser.add_argument("--of", default="")
    parser.add_argument("-h", "--help", action="store_true")
    options, overrides = parser.parse_known_args(rest)
    config = load_experiment(experiment)
    if options.help:
        print(f"{experiment_docstring(experiment)}\n\n{_HELP}\n\nKeys of {experiment}:\n{describe(config)}")
        return 0
    config = override(config, overrides, experiment, OPTIONS)
    if options.print_config:
        print(json.dumps(to_json(config), indent=2))
        return 0
    folder = options.runs / (options.name or run_name(experiment))
    return _run(config, folder, experiment, options.rewind_to, options.skip_batches, options.of)


def _run(
    config: object, folder: Path, experiment: str, rewind_to: int | None, skip_batches: str | None, stage: str
) -> int:
    from gptjax.runs import RunFolderRefused, check_same, stage_done, take_back
    from gptjax.sharding.distributed import join_cluster

    module = importlib.import_module(type(config).__module__)
    if not hasattr(module, "run"):
        name = type(config).__name__
        raise ConfigError(
            f"{name} is not a stage's configuration: {module.__name__} has no run(config, folder)"
        )
    if hasattr(module, "check") and not stage_done(folder):  # a finished run no longer needs its base
        try:
            module.check(config)
        except ConfigError as error:
            raise ConfigError(f"{experiment}: {error}") from error
    environment.use_compilation_cache()
    # Outside the training loop, which saves first, there is nothing to save: the same command resumes. Of
    # several processes the cluster's service, which `join_cluster` starts, notes the signal for all.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(RESUBMIT))
    join_cluster()
    if rewind_to is not None or skip_batches is not None:
        from gptjax.training.interventions import intervene

        check_same(folder, config)  # else the run would be changed, and then refused
        intervene(folder / stage, rewind_to, skip_batches)
    print(environment.run_header(config), flush=True)
    print(f"run folder {folder}", flush=True)
    try:
        module.run(config, folder)
    except UserError as error:
        if error.exit_code == USAGE and not isinstance(error, RunFolderRefused):
            error.exit_code = CONFIG  # the run has begun
        if not isinstance(error, RunFolderRefused):
            take_back(folder)
        raise
    except BrokenPipeError:
        raise
    except Exception as error:
        from gptjax.training.stopping import leave_after

        return leave_after(error)
    return 0
