"""Arms side by side: by hand, from made-up run folders."""

import json
import re
from pathlib import Path

import pytest

from gptjax import cli
from gptjax.evaluation.arms import Arm, figures, measure, read_arms
from gptjax.evaluation.comparison import comparison_table, remarks
from gptjax.evaluation.document import Table
from gptjax.evaluation.latex import latex_table

PLAIN = Arm("plain", {0: 1.0, 1: 2.0, 2: 6.0})
BETTER = Arm("better", {2: 6.5, 0: 1.5, 1: 3.0})
SEVEN = [Arm("plain", dict(enumerate([0.1 * i for i in range(7)]))), Arm("high", {})]
SEVEN[1] = Arm("high", {seed: value + 1 + 0.01 * seed for seed, value in SEVEN[0].values.items()})


def make_run(folder, figure, seed=0, **found):
    folder = Path(folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"type": "x:Y", "seed": seed}))
    if figure is not None:
        (folder / "done.json").write_text(json.dumps({"heldout": {"loss": figure}, "seconds": 2, **found}))
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Two finished arms of three seeds."""
    monkeypatch.chdir(tmp_path)
    for arm in (PLAIN, BETTER):
        for seed, value in arm.values.items():
            make_run(f"runs/x/{arm.name}-{seed}", value, seed)
    return tmp_path


def test_the_table_by_hand():
    header, first, second = [comparison_table([PLAIN, BETTER], PLAIN).header] + list(
        comparison_table([PLAIN, BETTER], PLAIN).rows
    )
    assert header[:5] == ("arm", "n", "mean", "sd", "95 % interval")
    # Mean 3, squares 4 + 1 + 9 = 14, sd sqrt(7) = 2.65; two digits of the smaller spread, 2.57.
    assert first == ["plain", "3", "3.0", "2.6", "1.0 to 6.0", "", "", "", "baseline"]
    # Differences by seed 0.5, 1.0, 0.5 although the arm's values come in another order.
    expected = ["better", "3", "3.7", "2.6", "1.5 to 6.5", "0.7", "0.5 to 1.0", "0.25"]
    assert second == [*expected, "no significant difference"]


def test_enough_seeds_show_a_difference_and_its_direction():
    low, high = SEVEN
    assert comparison_table(SEVEN, low).rows[1][-1] == "higher"
    assert comparison_table([high, low], high).rows[1][-1] == "lower"
    # 2 of the 128 choices of signs are as far from 0 as the observed one.
    assert comparison_table(SEVEN, low).rows[1][-2] == "0.0156"
    assert not [text for text in remarks(SEVEN, low, ["plain", "high"]) if "cannot" in text]


def test_what_the_reader_must_know():
    cut = Arm("cut", {0: 1.0}, missing=(1, 2))
    told = remarks([PLAIN, BETTER, cut], PLAIN, ["plain", "better", "cut", "base"])
    assert told == [
        "With 1 seed the sign-flip test cannot give less than p = 1, so no difference can be shown; "
        "it takes 6 seeds.",
        "With 3 seeds the sign-flip test cannot give less than p = 0.25, so no difference can be shown; "
        "it takes 6 seeds.",
        "The bootstrap interval of 3 seeds is their range, which holds the mean about 75 times in 100, "
        "not 95.",
        "Not finished, or without this figure: cut-1, cut-2.",
        "Arms not finished, or without this figure: base.",
    ]
    other = Arm("other", {7: 1.0})
    assert comparison_table([PLAIN, other], PLAIN).rows[1][-1] == "no seed in common"


def test_arms_and_seeds_are_read_from_run_folders(workplace):
    arms, baseline = read_arms(sorted(Path("runs/x").glob("*")), Path("runs"))
    assert baseline == "" and {name: sorted(seeds) for name, seeds in arms.items()} == {
        "x/better": [0, 1, 2],
        "x/plain": [0, 1, 2],
    }
    better, plain = measure(arms, "heldout.loss")
    assert dict(plain.values) == dict(PLAIN.values) and dict(better.values) == dict(BETTER.values)
    arms, _ = read_arms([make_run("elsewhere/quickstart", 1.0, seed=5)], Path("runs"))
    assert list(arms) == ["quickstart"] and list(arms["quickstart"]) == [5]


def test_every_number_of_a_run_is_a_figure(tmp_path):
    folder = make_run(tmp_path / "road", 1.0, models={"runs/a-0": {"perplexity": 3}}, ece=float("nan"))
    (folder / "reward").mkdir()
    (folder / "reward/done.json").write_text(json.dumps({"heldout": {"accuracy": 0.7}}))
    (folder / "results.json").write_text(json.dumps({"figures": [{"name": "PPO: gain", "value": 0.4}]}))
    found = figures(folder)
    assert found.pop("models.runs/a-0.perplexity") == 3
    assert found == {"heldout.loss": 1.0, "seconds": 2.0, "reward.heldout.accuracy": 0.7, "PPO: gain": 0.4}
    (arm,) = measure({"a": {0: folder}}, "models.runs/a-{seed}.perplexity")
    assert list(arm.values) == [0]


def test_latex_escapes_what_it_must():
    table = Table(["arm", "95 % interval"], [["a_b & c", "-0.5 to -1"], ["x-1", "3"]], numeric=frozenset({1}))
    lines = latex_table(table).splitlines()
    assert lines[0] == r"\begin{tabular}{lr}" and lines[2] == r"arm & 95 \% interval \\"
    assert lines[4] == r"a\_b \& c & $-$0.5 to $-$1 \\" and lines[5] == r"x-1 & 3 \\"


def test_the_command_writes_tables_and_drawings(workplace, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (gptjax[report])")
    runs = [f"runs/x/{arm}-{seed}" for arm in ("plain", "better") for seed in (0, 1, 2)]
    words = ["compare", *runs, "--metric", "heldout.loss", "--metric", "seconds", "--latex", "t/table.tex"]
    assert cli.main([*words, "--plot", "figures/loss.PNG"]) == 0
    shown = capsys.readouterr().out
    assert "## heldout.loss" in shown and "## seconds" in shown
    assert (
        "| x/better | 3 | 3.7 | 2.6 | 1.5 to 6.5 | 0.7 | 0.5 to 1.0 | 0.25 | no significant difference |"
        in shown
    )
    assert Path("t/table.tex").read_text().count(r"\toprule") == 2
    assert Path("figures/loss.PNG").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*words, "--plot", "loss.svg", "--baseline", "x/better"]) == 0
    first = Path("loss.svg").read_text()
    assert "<svg" in first and cli.main([*words, "--plot", "loss.svg", "--baseline", "x/better"]) == 0
    assert Path("loss.svg").read_text() == first, "the same figures give the same file"
    assert re.search(r"x/plain .* -0\.7 ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["runs/x/plain-0", "--metric", "heldout.los"],
            "no run has the figure 'heldout.los': the nearest is",
        ),
        (["runs/x/plain-9", "--metric", "heldout.loss"], "there is no run in runs/x/plain-9"),
        (["runs/x/begun-0", "--metric", "heldout.loss"], "none of these runs is finished"),
        (["runs/x/plain-0", "copy/x/plain-0", "--metric", "seconds"], "are both seed 0 of 'x/plain'"),
        (["runs/x/plain-0", "--metric", "seconds", "--plot", "a.pdf"], "must end in .png or .svg"),
        (["runs/x/plain-0", "--metric", "seconds", "--baseline", "y"], "as in --baseline x/plain"),
    ],
)
def test_an_error_is_one_sentence(workplace, capsys, words, sentence):
    make_run("runs/x/begun-0", None)
    make_run("runs/x/plain-3", 1.0, seed=0)
    words = ["runs/x/plain-3" if word.startswith("copy") else word for word in words]
    assert cli.main(["compare", *words]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and sentence in shown, shown
