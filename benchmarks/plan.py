"""What the largest runs of the road need: compiled for their devices on a machine that has none of them.

Each plan is one of `gptjax plan`: compiled with the compilers of `gptjax[plan]`, which are asked for the
programs that a training run would load. The seconds are those of this machine.

    python benchmarks/plan.py --note "one sentence"
"""

import argparse
import json
import resource
import time
from datetime import date
from pathlib import Path

from results import FOLDER, describe_machine, markdown

from gptjax.config import load_experiment, run_name
from gptjax.environment import git_revision, installed_packages
from gptjax.planning.compiling import can_compile
from gptjax.planning.plan import plan
from gptjax.planning.report import plan_json, plan_text
from gptjax.planning.topology import GIB, parse_topology

ROOT = Path(__file__).parent.parent
SCALE = ROOT / "experiments/scale"
PLANS = (
    ("gpt3_175b", "h100x512"),
    ("gpt3_175b", "v5p:8x8x8"),
    ("llama_65b", "h100x256"),
    ("llama_65b", "v5p:4x8x8"),
    ("glm_130b", "h100x256"),
    ("glm_130b", "v5p:4x8x8"),
    ("instructgpt_ppo", "h100x64"),
    ("instructgpt_ppo", "v5p:4x4x4"),
)


def options() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", default=[], help="such as gpt3_175b@h100x512; all without it"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small model on eight CPUs: does it run at all?"
    )
    parser.add_argument("--note", default="", help="a sentence for the result")
    parser.add_argument(
        "--results", type=Path, help=f"where the files go (default: {FOLDER}; with --quick, nowhere)"
    )
    return parser


def chosen(asked: argparse.Namespace) -> list[tuple[Path, str]]:
    """(experiment file, topology) of every plan that is wanted."""
    if asked.quick:
        return [(ROOT / "experiments/gpt2/small.py", "cpu:1")]
    wanted = [(SCALE / f"{name}.py", where) for name, where in PLANS]
    return [(file, where) for file, where in wanted if not asked.only or f"{file.stem}@{where}" in asked.only]


def make(file: Path, where: str) -> dict:
    """One plan, as JSON values with the seconds it took."""
    topology = parse_topology(where)
    if lacking := can_compile(topology):
        raise SystemExit(f"error: {lacking}")
    begun = time.monotonic()
    experiments = next(folder for folder in file.parents if folder.name == "experiments")
    plans = plan(load_experiment(file), run_name(file), topology, experiments=experiments)
    print(plan_text(plans, topology), flush=True)
    found = plan_json(plans, topology)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    facts = {"experiment": run_name(file), "commit": git_revision(), "compiler_gib": children}
    return facts | {"seconds": time.monotonic() - begun} | found


def with_earlier(found: list[dict], stem: Path) -> list[dict]:
    """The plans that were made, after those of the same day that were not made anew."""
    file = stem.with_suffix(".json")
    earlier = json.loads(file.read_text("utf-8"))["plans"] if file.exists() else []
    names = [(made["experiment"], made["topology"]) for made in found]
    return [made for made in earlier if (made["experiment"], made["topology"]) not in names] + found


def rows(found: list[dict]) -> list[dict]:
    """One line a program."""
    return [
        {
            "run": f"{made['experiment']} on {made['topology']}",
            "program": facts["name"],
            "compile s": facts["seconds"],
            "arguments GiB": facts["arguments"] / GIB if "arguments" in facts else None,
            "temporary GiB": facts["temporary"] / GIB if "temporary" in facts else None,
            "peak of the program GiB": facts["peak"] / GIB if facts.get("peak") else None,
            "needs GiB": facts["needs"] / GIB if facts["needs"] else None,
            "usable GiB": stage["limit"] / GIB if stage["limit"] else None,
            "fits": bool(facts["needs"]) and (stage["limit"] is None or facts["needs"] <= stage["limit"]),
        }
        for made in found
        for stage in made["stages"].values()
        for facts in stage["compiled"]
    ]


def bounds(found: list[dict]) -> list[dict]:
    """One line a run: what its data sheets allow."""
    return [
        {
            "run": f"{made['experiment']} on {made['topology']}",
            "parameters": [f"{count:,}" for count in stage["parameters"].values()],
            "FLOPs/token": f"{stage['flops_per_token']:.3e}",
            "step s, all overlapped": stage.get("seconds_per_step", {}).get("least"),
            "step s, nothing overlapped": stage.get("seconds_per_step", {}).get("most"),
            "collectives GiB": sum(one["bytes"] for one in stage["collectives"]) / GIB,
            "estimate GiB": stage["estimated"] / GIB,
        }
        for made in found
        for stage in made["stages"].values()
    ]


def main() -> None:
    """Makes the plans and writes `plan-<date>.json` and `.md`."""
    asked = options().parse_args()
    folder, today = asked.results or (None if asked.quick else FOLDER), date.today().isoformat()
    found = [make(*one) for one in chosen(asked)]
    found = found if folder is None else with_earlier(found, folder / f"plan-{today}")
    held = max(made["compiler_gib"] for made in found)
    result = {
        "benchmark": "plan",
        "date": today,
        "machine": describe_machine(),
        "commit": git_revision(),
        "packages": installed_packages(),
        "settings": {"quick": asked.quick, "only": asked.only},
        "status": ("quick: " if asked.quick else "")
        + f"Compiled without devices; the largest compiler held {held:.1f} GiB. Seconds are of this "
        "machine, bounds are arithmetic on data sheets: nothing here was run on an accelerator.",
        "note": asked.note,
        "tables": {"Memory a device": rows(found), "Bounds": bounds(found)},
    }
    text = markdown(result)
    print(text)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"plan-{today}"
        stem.with_suffix(".json").write_text(json.dumps(result | {"plans": found}, indent=1) + "\n", "utf-8")
        stem.with_suffix(".md").write_text(text, "utf-8")
        print(f"written: {stem}.json and .md")


if __name__ == "__main__":
    main()
