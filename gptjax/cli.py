"""The console script `gptjax`: train, plan, sweep, compare, chat, report, replay, verify, import and so on.

Nothing heavy is imported before a command runs, so that `gptjax --help` answers at once.
"""

import argparse
import importlib
import logging
import os
import select
import sys
from pathlib import Path

from gptjax.arguments import CommandParser, Parser
from gptjax.errors import DATA, UserError

BROKEN_PIPE = 141  # as the shell says it of a program that SIGPIPE ended


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit code, see docs/configuration.md.

    141 says that nobody reads the output any more, as after `gptjax train ... --print-config | head -1`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what a single process always does
    try:
        if arguments[:1] == ["train"]:
            code = importlib.import_module("gptjax.stages.command").run_train(arguments[1:])
        elif arguments[:1] == ["plan"]:
            code = importlib.import_module("gptjax.planning.command").run_plan(arguments[1:])
        else:
            options = parser().parse_args(arguments)
            code = options.command(options)
        sys.stdout.flush()  # or the end of the interpreter would be the first to notice a closed pipe
        return code
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return BROKEN_PIPE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _output_is_closed() -> bool:
    """Says whether standard output has lost its reader; if so, what is left for it is thrown away."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors and hang-ups alone
    closed = bool(poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def parser() -> Parser:
    """The commands and their options."""
    found = Parser(prog="gptjax", description="The road from GPT to ChatGPT in JAX.")
    commands = found.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=CommandParser
    )
    # `train` and `plan` have their own parsers, because the keys they take are those of the experiment.
    commands.add_parser("train", help="run an experiment file, or resume it")
    commands.add_parser("plan", help="what an experiment needs, takes and costs, without its devices")
    _add_sweeps(commands)
    _add_runs(commands)
    _add_exchange(commands)
    _add_listings(commands)
    return found


def _add_sweeps(commands) -> None:
    sweep = commands.add_parser("sweep", help="run arms x seeds, what is not finished yet")
    sweep.add_argument("file", type=Path, help="a Python file with sweep()")
    sweep.add_argument(
        "--backend",
        choices=["local", "slurm", "print"],
        default="local",
        help="processes here, an array of SLURM jobs, or the commands alone (default: local)",
    )
    sweep.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    sweep.add_argument(
        "--runs", type=Path, default=Path("runs"), help="the folder of all runs (default: runs)"
    )
    sweep.add_argument(
        "--slurm", default="", metavar="OPTIONS", help="further options of sbatch, as one word"
    )
    sweep.add_argument("--dry-run", action="store_true", help="print what would be run or submitted")
    sweep.set_defaults(command=_sweep)

    compare = commands.add_parser("compare", help="set the arms of a sweep side by side")
    compare.add_argument("targets", nargs="+", metavar="SWEEP_OR_RUN", help="sweep files or run folders")
    compare.add_argument(
        "--metric", action="append", required=True, help="a key of done.json, such as heldout.accuracy"
    )
    compare.add_argument("--baseline", default="", help="the arm that others are compared with")
    compare.add_argument(
        "--runs", type=Path, default=Path("runs"), help="the folder of all runs (default: runs)"
    )
    compare.add_argument("--latex", type=Path, metavar="FILE", help="write the tables for LaTeX as well")
    compare.add_argument("--plot", type=Path, metavar="FILE", help="draw them as well: a .png or .svg file")
    compare.set_defaults(command=_compare)


def _add_runs(commands) -> None:
    chat = commands.add_parser("chat", help="talk to a trained model in the terminal")
    chat.add_argument("run", type=Path, help="the run's folder, such as runs/quickstart")
    chat.add_argument("--temperature", help="0 takes the likeliest token")
    chat.add_argument("--top-k", help="sample among the k likeliest tokens; 0 for all")
    chat.add_argument("--top-p", help="sample among the likeliest tokens that hold this probability")
    chat.add_argument("--max-new-tokens", help="the longest reply")
    chat.add_argument("--seed", help="of the first reply; each reply adds one")
    chat.add_argument("--system", help="a system message")
    chat.add_argument("--weights", choices=["int8", "int4"], help="quantise the linear maps to 8 or 4 bits")
    chat.set_defaults(command=_chat)

    report = commands.add_parser("report", help="write report.md and report.html of one or more runs")
    report.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders; the first gets the report"
    )
    report.set_defaults(command=_report)

    replay = commands.add_parser("replay", help="make a logged step of a PPO run again and compare its bits")
    replay.add_argument("run", type=Path, help="the run's folder, such as runs/quickstart/ppo")
    replay.add_argument("--step", type=int, required=True, help="as in metrics.jsonl, from 1")
    replay.set_defaults(command=_replay)

    verify = commands.add_parser("verify", help="check every stored bit of a run")
    verify.add_argument("run", type=Path, help="the run's folder: of a stage or of a road")
    verify.set_defaults(command=_verify)


def _add_exchange(commands) -> None:
    take = commands.add_parser("import", help="make a run of a GGUF file or a Hugging Face folder")
    take.add_argument("source", type=Path, help="the file or the folder")
    take.add_argument("--name", help="the run's name (default: the source's)")
    take.add_argument(
        "--runs", type=Path, default=Path("runs"), help="the folder of all runs (default: runs)"
    )
    take.set_defaults(command=_import)

    export = commands.add_parser("export", help="write a run's model for other programs")
    export.add_argument("run", type=Path, help="the run's folder, such as runs/quickstart")
    export.add_argument(
        "--to", choices=["hf", "gguf"], required=True, help="hf: a folder for transformers; gguf: a file"
    )
    export.add_argument("--output", type=Path, required=True, help="the folder or the file, new")
    export.add_argument(
        "--precision", choices=["f32", "f16", "q8_0"], default="f32", help="of a GGUF file's matrices"
    )
    export.set_defaults(command=_export)


def _add_listings(commands) -> None:
    models = commands.add_parser("models", help="list the published models and the memory they need")
    models.add_argument("families", nargs="*", metavar="FAMILY", help="such as llama3; all without it")
    models.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    models.set_defaults(command=_models)

    env = commands.add_parser("env", help="print versions and devices, to paste into a bug report")
    env.add_argument("--json", action="store_true", help="print JSON")
    env.set_defaults(command=_env)


def _sweep(options: argparse.Namespace) -> int:
    from gptjax.sweeps.command import run_sweep

    return run_sweep(
        options.file, options.backend, options.jobs, options.runs, options.slurm, options.dry_run
    )


def _compare(options: argparse.Namespace) -> int:
    from gptjax.evaluation.comparison import write_comparison

    write_comparison(
        options.targets, options.metric, options.baseline, options.runs, options.latex, options.plot
    )
    return 0


def _chat(options: argparse.Namespace) -> int:
    from gptjax.serving.terminal import Settings, chat

    settings = Settings()
    for name in ("temperature", "top_k", "top_p", "max_new_tokens", "seed", "system"):
        if getattr(options, name) is not None:
            settings = settings.set(name, getattr(options, name))
    _check_folder(options.run)
    from gptjax.environment import use_compilation_cache
    from gptjax.models.quantization import WEIGHT_FORMATS
    from gptjax.serving.chat_model import load_chat_model

    use_compilation_cache()
    chat(load_chat_model(options.run, WEIGHT_FORMATS.get(options.weights)), settings)
    return 0


def _report(options: argparse.Namespace) -> int:
    from gptjax.evaluation.report import write_report

    for run in options.runs:
        _check_folder(run)
    print(write_report(options.runs))
    return 0


def _replay(options: argparse.Namespace) -> int:
    from gptjax.environment import use_compilation_cache
    from gptjax.stages.replay import replay

    _check_folder(options.run)
    use_compilation_cache()
    return 0 if replay(options.run, options.step) else 1


def _verify(options: argparse.Namespace) -> int:
    from gptjax.stages.verify import verify

    _check_folder(options.run)
    return 0 if verify(options.run) else DATA


def _import(options: argparse.Namespace) -> int:
    from gptjax.interop.importing import import_model

    name = options.name or options.source.absolute().name.removesuffix(".gguf")
    folder = import_model(options.source, options.runs / name)
    print(f"imported into {folder}")
    return 0


def _export(options: argparse.Namespace) -> int:
    _check_folder(options.run)
    if options.to == "gguf":
        from gptjax.interop.gguf_writing import export_gguf

        lines = export_gguf(options.run, options.output, options.precision)
    elif options.precision != "f32":
        from gptjax.config import ConfigError

        raise ConfigError("a Hugging Face folder is written in f32: --precision belongs to --to gguf")
    else:
        from gptjax.interop.exporting import export_model

        lines = export_model(options.run, options.output)
    for line in lines:
        print(line)
    return 0


def _models(options: argparse.Namespace) -> int:
    from gptjax.models.catalogue import catalogue, catalogue_text

    entries = catalogue(options.families)
    if options.json:
        import json

        print(json.dumps(entries, indent=2))
    else:
        print(catalogue_text(entries))
    return 0


def _env(options: argparse.Namespace) -> int:
    from gptjax.environment import describe_environment, environment_text

    if options.json:
        import json

        print(json.dumps(describe_environment(), indent=2))
    else:
        print(environment_text())
    return 0


def _check_folder(folder: Path) -> None:
    from gptjax.config import ConfigError, nearest

    if (folder / "config.json").exists():
        return
    runs = [str(found.parent) for found in folder.parent.glob("*/config.json")]
    known = (
        f"the nearest is {nearest(str(folder), runs)}" if runs else "train one with ./launch.sh quickstart"
    )
    raise ConfigError(f"there is no run in {folder}: {known}")


if __name__ == "__main__":
    sys.exit(main())
