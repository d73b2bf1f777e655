"""Presets named on the command line: applied before all other keys, in a stage and in a road."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from documentation import ROOT

from gptjax.config import ConfigError, load_experiment
from gptjax.overrides import describe, override
from gptjax.stages.conventions import PRESETS, Conventions
from gptjax.stages.ppo import PpoConfig
from gptjax.sweeps.plan import SweepConfig, plan

BASE = PpoConfig(iterations=1, batch_size=8, corpora={"text": 1.0})
ROAD = tiny.config(Path("data"))


def test_a_preset_is_named_on_the_command_line():
    for name, preset in PRESETS.items():
        assert override(BASE, ["--preset", name]) == preset(BASE)
    words = ["--conventions.score-at=last_token", "--preset=n_plus", "--epochs", "2"]
    single = replace(Conventions(average_over="micro_batch", value_coef=0.1), score_at="last_token")
    assert override(BASE, words) == replace(PRESETS["n_plus"](BASE), conventions=single, epochs=2)
    assert override(ROAD, ["--ppo.preset", "trl_1_12"]).ppo == PRESETS["trl_1_12"](ROAD.ppo)
    assert "--preset " in describe(BASE) and f"{'|'.join(PRESETS)}   sets" in describe(BASE)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--ppo.preset n+", "'ppo.preset' in exp.py must be one of oai2019, n_plus, .* nearest is 'n_plus'"),
        ("--ppo.preset n_plus --ppo.preset n_plus", "key 'ppo.preset' in exp.py is set twice: set it once"),
        ("--reward.preset n_plus", "unknown key 'reward.preset' in exp.py"),
        ("--ppo.preset", "key 'ppo.preset' has no value"),
        ("--ppo.preset oai2019", "exp.py, --ppo.preset oai2019: .*cut_after = 16 must be below .* = 6"),
    ],
)
def test_a_preset_that_cannot_be_applied_is_refused(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        override(ROAD, words.split(), "exp.py")


def test_a_sweep_lays_presets_beside_each_other(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    arms = {f"{name}/three": f"--preset {name} --epochs 3" for name in PRESETS}
    config = SweepConfig(experiment="experiments/instructgpt/ppo.py", arms=arms, seeds=(0, 1))
    cells, plain = plan(config, "sweep.py", tmp_path), load_experiment(config.experiment)
    assert {(cell.arm, cell.seed): cell.config for cell in cells} == {
        (f"{name}/three", seed): replace(preset(plain), epochs=3, seed=seed)
        for name, preset in PRESETS.items()
        for seed in config.seeds
    }
