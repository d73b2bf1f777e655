"""The pages are true: commands run, examples run, tables are those of the code, what they name is there."""

import dataclasses
import inspect
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import gguf_file
import pytest
import tiny
from documentation import (
    FILES,
    PAGES,
    ROOT,
    blocks,
    commands,
    experiment_files,
    run_examples,
    sessions,
    table,
)
from test_interop_gguf import LLAMA, llama_tensors

from gptjax import cli, environment
from gptjax.config import ConfigError, load_experiment, to_json
from gptjax.data.quality import DataError
from gptjax.errors import CONFIG, WAITING
from gptjax.launching.__main__ import PLATFORMS
from gptjax.launching.environments import ENVIRONMENTS
from gptjax.models.lora import LoraConfig
from gptjax.models.quantization import QuantizationConfig
from gptjax.overrides import override
from gptjax.runs import open_run
from gptjax.serving.terminal import HELP, Settings
from gptjax.sharding.rules import RULES
from gptjax.stages import self_check
from gptjax.stages.best_of_n import BestOfNConfig
from gptjax.stages.classify import ClassifyConfig
from gptjax.stages.finetune import FinetuneConfig
from gptjax.stages.gold_labels import GoldLabelsConfig
from gptjax.stages.grouped import GroupedConfig
from gptjax.stages.masked import MaskedConfig
from gptjax.stages.online import OnlineConfig
from gptjax.stages.ppo import PpoConfig
from gptjax.stages.preference import PreferenceConfig
from gptjax.stages.pretrain import PretrainConfig
from gptjax.stages.reward import RewardConfig
from gptjax.stages.translate import TranslateConfig
from gptjax.sweeps.plan import load_sweep, plan
from gptjax.training import watchdog
from gptjax.training.checkpoint import SaveFailed
from gptjax.training.goodput import CAUSES
from gptjax.training.loop import RESUBMIT, LoopSettings, TrainingStopped

STAGES = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "reward": RewardConfig,
    "ppo": PpoConfig,
    "translate": TranslateConfig,
    "masked": MaskedConfig,
    "classify": ClassifyConfig,
    "preference": PreferenceConfig,
    "grouped": GroupedConfig,
    "best_of_n": BestOfNConfig,
    "online": OnlineConfig,
    "gold_labels": GoldLabelsConfig,
}
# The stages' own experiments run in full, on little data and in a small size, and become `runs/quickstart`.
# As the pages type them they are resolved.
SMALL = {
    "my_text": (
        "pretrain",
        "--model.vocab-size 512 --model.width 16 --model.layers 1 --model.heads 2 --batch-size 4 --steps 4 "
        "--heldout-bytes 1000 --length 64 --save-every 2",
    ),
    "my_dialogues": ("finetune", "--steps 2 --rewordings 1 --length 120"),
    "my_rankings": ("reward", "--batch-size 4 --length 128"),
    "my_ppo": (
        "ppo",
        "--iterations 1 --batch-size 4 --sampling.max-new-tokens 4 --eval-prompts 4 --eval-bytes 1000 "
        "--minibatches 1 --ptx-rows 2 --ptx-length 32 --prompt-length 64 --tracking.answer-tokens 4",
    ),
    "my_translation": (
        "translate",
        "--model.vocab-size 384 --model.width 16 --model.layers 1 --model.heads 2 --steps 2 --eval-every 2 "
        "--translated 4 --batch-tokens 256 --lengths 64 --search.extra-tokens 4",
    ),
    "my_bert": (
        "masked",
        "--model.vocab-size 512 --model.width 16 --model.layers 1 --model.heads 2 --batch-size 4 --steps 2 "
        "--heldout-bytes 1000 --length 32 --masking.copies 1",
    ),
    "my_classifier": ("classify", "--steps 2 --length 32 --clear 2.5"),
    "my_preferences": ("preference", "--batch-size 4 --length 128"),
    "my_grouped": (
        "grouped",
        "--iterations 1 --batch-size 4 --group-size 2 --sampling.max-new-tokens 4 --eval-prompts 4 "
        "--prompt-length 64",
    ),
    "my_best_of_n": (
        "best_of_n",
        # So many, because few replies of such a model end.
        "--asked 16 --n 64 --sampling.max-new-tokens 8 --missing-eos-penalty 9.0 --prompt-length 64 "
        "--eval-prompts 4 --finetune.steps 2 --finetune.length 120 --finetune.batch-size 2",
    ),
    "my_rounds": (
        "online",
        "--prompts 8 --replies 2 --reward.batch-size 4 --ppo.iterations 1 --ppo.batch-size 4 "
        "--ppo.minibatches 1 --ppo.sampling.max-new-tokens 4 --ppo.eval-prompts 4 --ppo.prompt-length 64",
    ),
    "my_gold_labels": ("gold_labels", "--asked 32 --replies 64 --sampling.max-new-tokens 8"),
    "my_proxy": ("proxy", "--batch-size 2 --k-max 64 --epochs 1"),
    "my_optimised": (
        "optimised",
        "--iterations 4 --batch-size 4 --sampling.max-new-tokens 4 --eval-prompts 16 --eval-bytes 1000 "
        "--minibatches 1 --ptx-length 32 --tracking.every 1 --optimizer.learning-rate 0.02",
    ),
}
# The road's experiments would take minutes: here they are resolved, .ci/run runs the quickstart.
ROADS = ("quickstart", "llama_style", "no_margin_of_safety", "my_blanks", "my_replies")
MEASUREMENTS = ("my_zero_shot", "my_probe", "my_curves", "my_tax")  # of the finished road, in full
COMMANDS = [(page, command) for page in FILES for command in commands(page)]


def gptjax(command: str, stdin: str = "") -> int:
    """Runs a `gptjax` command in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        # The cache of compiled programs belongs to the user, not to the tests.
        patch.setattr(environment, "use_compilation_cache", lambda: None)
        try:
            return cli.main(shlex.split(command)[1:])
        except SystemExit as exit:
            return exit.code


def write_data(folder) -> None:
    """The files of one's own that the pages speak of, made of bundled data."""
    written = tiny.write_data(folder / "data")
    (folder / "my_texts").mkdir()
    names = {"text": "my_texts/text", "dialogues": "my_dialogues", "preferences": "my_rankings"}
    for name, own in names.items():
        shutil.copy(written / f"{name}.jsonl", folder / f"{own}.jsonl")
    tiny.write_pairs(folder).rename(folder / "my_pairs.jsonl")
    gguf_file.write(folder / "my_model.gguf", LLAMA, llama_tensors())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the experiments of the pages, data of one's own, and a finished tiny road."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "experiments").mkdir()
    shutil.copy(ROOT / "experiments" / "quickstart.py", folder / "experiments")
    for paper in ("instructgpt", "scale"):
        shutil.copytree(ROOT / "experiments" / paper, folder / "experiments" / paper)
    for path, text in experiment_files().items():
        (folder / path).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        write_data(folder)
        open_run(folder / "runs/quickstart", tiny.config(folder / "data"))
        for name, (stage, sizes) in SMALL.items():
            command = f"gptjax train experiments/{name}.py"
            assert gptjax(f"{command} --runs runs/quickstart --name {stage} {sizes}") == 0, command
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda x: x)
def test_every_command_runs(page, command, workplace, capsys):
    feed, _, last = command.rpartition(" | ")
    words = shlex.split(last)
    if command in ("./launch.sh quickstart", "./launch.sh test"):
        ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
        assert re.search(rf"^step \S+ {re.escape(command)}( |$)", ci, re.MULTILINE), (
            f".ci/run lacks {command}"
        )
    elif words == ["source", ".venv/bin/activate"]:
        if not (ROOT / ".venv").exists():
            pytest.skip("there is no .venv: ./launch.sh makes it")
        assert subprocess.run(["bash", "-ec", f"{command}; command -v python"], cwd=ROOT).returncode == 0
    elif words[:2] == ["./launch.sh", "chat"]:
        ran = subprocess.run(f"{command} --dry-run", shell=True, cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0 and "gptjax chat runs/smollm2" in ran.stdout, ran.stderr
    elif words[:1] == ["./launch.sh"] and words[1] in PLATFORMS:
        typed = shlex.join([*words[:2], "--dry-run", *words[2:]])
        ran = subprocess.run(typed, shell=True, cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert shlex.join(words[words.index("--") + 1 :]) in ran.stdout
        named = re.search(r"experiments/\S+\.py", command)[0]
        assert (ROOT / named).exists(), f"{page} launches {named}, which is not there"
    elif "./launch.sh" in words:
        ran = subprocess.run(f"{command} --dry-run", shell=True, cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert "gptjax train experiments/quickstart.py" in ran.stdout and "cuda12" in ran.stdout
    elif words[0] == "gptjax":
        stdin = subprocess.run(feed, shell=True, capture_output=True, text=True).stdout if feed else "/quit\n"
        assert run_gptjax(words, stdin) == 0
        assert capsys.readouterr().out.strip()
    else:
        pytest.fail(f"{page}: nothing runs the command: {command}")


def run_gptjax(words: list[str], stdin: str) -> int:
    """Runs a command of the pages, training as far as its configuration."""
    experiment = Path(words[2]).stem if words[1] == "train" and "--help" not in words else None
    if experiment in SMALL:
        assert Path("runs/quickstart", SMALL[experiment][0], "done.json").exists(), "the fixture runs it"
    if experiment:
        assert experiment in (*SMALL, *ROADS, *MEASUREMENTS), f"nothing runs the experiment {experiment}"
        words += ["--print-config"] if experiment not in MEASUREMENTS else []
    if experiment == "my_curves":
        words += ["--sampling.max-new-tokens", "4"]  # as the replies of the small run that it measures
    if words[1] == "sweep" and "print" not in words:
        words += ["--dry-run"]  # its runs would take minutes: tests/test_sweeps.py runs some
    if words[1] == "compare":
        finish_sweep(words[2])
    for run in words[3:] if words[1] == "report" else []:
        shutil.copytree("runs/quickstart", run, dirs_exist_ok=True)  # it stands for the run of another seed
    return gptjax(shlex.join(words), stdin)


@pytest.mark.slow
def test_a_run_goes_back_and_leaves_batches_out_as_the_page_says(workplace, capsys):
    """The page's command, 2 for 900 and 3:4 for 980:1010, on a copy of the fixture's run, made unfinished."""
    (command,) = (command for page, command in COMMANDS if "--rewind-to" in command)
    typed = command.replace("900", "2").replace("980:1010", "3:4")
    assert typed == "gptjax train experiments/my_text.py --rewind-to 2 --skip-batches 3:4"
    stage, sizes = SMALL["my_text"]
    folder = Path(shutil.copytree(f"runs/quickstart/{stage}", "runs/rewound"))
    (folder / "done.json").unlink()
    assert gptjax(f"{typed} --name rewound {sizes}") == 0
    shown = capsys.readouterr().out
    assert "goes on from step 2" in shown and "batches 3 to 3 are left out" in shown
    assert [path.name for path in (folder / "checkpoints-rewound").iterdir()] == ["4"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4]
    assert [row["step"] for row in rows if "left_out" in row] == [3] and (folder / "done.json").exists()


def finish_sweep(file: str) -> None:
    """The run folders of a finished sweep of reward models; the one of the road stands for each."""
    for cell in plan(load_sweep(file), file):
        cell.folder.mkdir(parents=True, exist_ok=True)
        (cell.folder / "config.json").write_text(json.dumps(to_json(cell.config)))
        shutil.copy("runs/quickstart/reward/done.json", cell.folder)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "printed"), sessions("docs/configuration.md"), ids=lambda x: x[:60])
def test_every_error_is_printed_as_shown(command, printed, workplace, capsys):
    assert gptjax(command) == ConfigError.exit_code
    assert capsys.readouterr().err.strip() == printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in FILES if blocks(page, "python") and page != "docs/data.md"]
)
def test_every_example_runs(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    run_examples(page, {})


def default_of(config, key: str) -> str:
    """The default of a dotted key, as the pages write it."""
    group, *rest = key.split(".")
    declared = config.__pydantic_fields__
    assert group in declared, f"{config.__name__} has no key {group}"
    if declared[group].is_required():
        return "required"
    default = declared[group].get_default(call_default_factory=True)
    for name in rest:
        default = getattr(default, name)
    return str(default).lower() if default != "" else "none given"


@pytest.mark.parametrize("stage", STAGES)
def test_keys_and_defaults_are_those_of_the_code(stage):
    rows = table(f"docs/{stage}.md", "Configuration")
    assert len(rows) > 5
    assert [row[1] for row in rows] == [default_of(STAGES[stage], row[0]) for row in rows]


def test_keys_of_adapters_are_those_of_the_code():
    rows = table("docs/finetune.md", "Low-rank adapters")
    settings = dataclasses.asdict(LoraConfig())
    shown = {name: ",".join(value) if name == "targets" else str(value) for name, value in settings.items()}
    assert {row[0]: row[1] for row in rows} == shown


def test_keys_of_quantisation_are_those_of_the_code():
    rows = table("docs/models.md", "Quantised weights")
    settings = dataclasses.asdict(QuantizationConfig())
    assert {row[0]: row[1] for row in rows} == {name: str(value).lower() for name, value in settings.items()}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_metrics_are_those_of_a_run(stage, workplace):
    lines = (workplace / f"runs/quickstart/{stage}/metrics.jsonl").read_text("utf-8").splitlines()
    logged = {name for line in lines for name in json.loads(line)} - {"step", "stage", "time", "elapsed"}
    shown = {row[0] for row in table(f"docs/{stage}.md", "Metrics")}
    known = {re.sub("^heldout/.*", "heldout/SOURCE", name) for name in logged}
    assert {name for name in known if not name.startswith("self_check/")} == shown
    assert all(f"`{name}`" in PAGES[f"docs/{stage}.md"] for name in known)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_run_folders_hold_what_the_pages_say(stage, workplace):
    folder = workplace / "runs/quickstart" / stage
    files = {row[0] for row in table("docs/configuration.md", "Run folders")}
    own = {"pretrain": {"tokenizer.model", "tokens/"}, "ppo": {"samples.jsonl"}}
    own |= {"translate": {"tokenizer.model", "samples.jsonl"}, "masked": {"tokenizer.model"}}
    own |= {"grouped": {"samples.jsonl"}, "best_of_n": {"samples.jsonl", "best.jsonl", "finetune/"}}
    own |= {"online": {"samples.jsonl", "round-1/", "round-2/"}, "gold_labels": {"preferences.jsonl"}}
    files |= own.get(stage, set())
    files -= {"online": {"checkpoints/", "events.jsonl"}, "gold_labels": {"model/"}}.get(stage, set())
    reported = {"report.md", "report.html", "figures/"}  # where a page has asked for a stage's report
    assert {path.name + "/" * path.is_dir() for path in folder.iterdir()} - reported == files
    heldout = json.loads((folder / "done.json").read_text("utf-8")).get("heldout", {})
    first = next(iter(heldout), "")
    named = {"pretrain": first, "masked": first, "ppo": "policy", "translate": "averaged"}
    heldout = heldout.get(named.get(stage), {})
    assert all(f"`{name}`" in PAGES[f"docs/{stage}.md"] for name in heldout)


def test_exit_codes_are_those_of_the_code():
    codes = {int(row[0]) for row in table("docs/configuration.md", "Exit codes")}
    errors = (ConfigError, DataError, TrainingStopped, SaveFailed, self_check.SelfCheckFailed)
    others = {0, 1, 130, CONFIG, WAITING, RESUBMIT, cli.BROKEN_PIPE}
    assert codes == others | {error.exit_code for error in errors}


def test_causes_of_lost_time_are_those_of_the_code():
    assert [row[0] for row in table("docs/reliability.md", "Goodput")] == list(CAUSES)


def test_limits_are_those_of_the_code():
    page = PAGES["docs/reliability.md"]
    assert f"{watchdog.STEPS:.0f} times the median step" in page and "half an hour" in page
    assert watchdog.ELSEWHERE == 1800 and LoopSettings.hang_after == 120 and "120 seconds" in page


def test_environments_are_those_of_the_code():
    shown = {
        (accelerator, row[1])
        for row in table("docs/launching.md", "Flags and environment")
        for accelerator in (ENVIRONMENTS if row[0] == "all" else row[0].split(", "))
    }
    assert shown == {(name, variable) for name, own in ENVIRONMENTS.items() for variable in own}


def test_rules_are_those_of_the_code():
    shown = {row[0]: row[1] for row in table("docs/scaling.md", "The rules")}
    targets = {
        name: target if isinstance(target, str | None) else ", ".join(target)
        for name, target in RULES.items()
    }
    assert shown == {name: target or "none" for name, target in targets.items()}


def test_identities_are_those_of_the_self_check():
    shown = [row[0] for row in table("docs/numerics.md", "The self-check of PPO")]
    identities = inspect.getsource(self_check.check_identities)
    found = re.findall(r'^        "([^"/]+)": ', identities, re.MULTILINE)
    first_update = inspect.getsource(self_check.check_first_ratio)
    assert found + re.findall(r"'([^']+)' does not hold", first_update) == shown
    tolerance = self_check.TOLERANCE
    assert (
        f"{tolerance['float32']} nats in float32, {tolerance['bfloat16']} in bfloat16"
        in PAGES["docs/numerics.md"]
    )


def test_the_chat_page_shows_help_and_settings():
    assert HELP in PAGES["docs/chat.md"].replace("\n    ", "\n")
    shown = {row[0]: row[1] for row in table("docs/chat.md", "Settings")}
    assert shown == {name: str(value) or "empty" for name, value in asdict(Settings()).items()}


def test_kinds_of_overrides_have_the_effect_shown():
    config = load_experiment(ROOT / "experiments/quickstart.py")
    changed = override(config, ["--pretrain.corpora", "shakespeare=0.9,pydoc=0.1", "--ppo.kl-target", "none"])
    assert changed.pretrain.corpora == {"shakespeare": 0.9, "pydoc": 0.1} and changed.ppo.kl_target is None
    entry = override(config, ["--pretrain.corpora.pydoc=0.01"]).pretrain.corpora
    assert entry == config.pretrain.corpora | {"pydoc": 0.01}
    for words in (["--pretrain.model.tied", "false"], ["--pretrain.model.no-tied"]):
        assert override(config, words).pretrain.model.tied is False


@pytest.mark.parametrize("page", FILES)
def test_what_a_page_names_is_there(page):
    folder = (ROOT / page).parent
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) if "://" not in link]
    missing = [link for link in links if not (folder / link).exists()]
    paths = re.findall(r"`((?:gptjax|tests|experiments|docs)/[\w./]*)`", PAGES[page])
    missing += [path for path in paths if not (ROOT / path).exists() and path not in experiment_files()]
    assert not missing, f"{page} names what is not there: {missing}"


@pytest.mark.parametrize("page", FILES)
def test_tests_that_a_page_names_are_there(page):
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGES[page])
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)
    ]
    assert not missing, f"{page} names tests that are not there: {missing}"


def test_every_page_of_docs_is_reached_from_another():
    for page in FILES:
        name = page.split("/")[-1]
        others = "".join(text for other, text in PAGES.items() if other != page)
        assert name == "README.md" or f"{name})" in others, f"no page links to {page}"
