"""Configurations: types, experiment files, overrides, the round trip through JSON."""

import dataclasses
import json
import pickle
import sys
from typing import Annotated, Literal

import pydantic
import pytest
from pydantic import Field

from gptjax.config import ConfigError, configclass, difference, from_json, load_experiment, run_name, to_json
from gptjax.overrides import describe, override


@configclass
class Optimizer:
    """How parameters move.

    Attributes:
        learning_rate: the peak of the
            schedule.
        kind, clip: its name, its limit.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    kind: Literal["adamw", "sgd"] = "adamw"
    clip: float | None = 1.0


@configclass
class Model:
    width: int = 64
    heads: int = 4

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")


@configclass
class DeepModel(Model):
    layers: int = 48


@configclass
class Sized:
    size: int


@configclass
class Checks:
    self_check: bool = True
    note: bool = True
    no_note: bool = True


@configclass
class Experiment:
    optimizer: Optimizer = Optimizer()
    model: Model = Model()
    draft: Model | None = None
    checks: Checks = Checks()
    sized: Sized | None = None
    steps: Annotated[int, Field(gt=0)] = 10
    weights: dict[str, float] = Field(default_factory=lambda: {"a": 1.0, "b_c": 2.0})
    shuffle: bool = False
    names: tuple[str, ...] = ("old",)
    note: str = ""


BASE = Experiment()


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--optimizer.learning-rate", "3e-4"], "optimizer.learning_rate", 3e-4),
        (["--optimizer.learning_rate=3e-4"], "optimizer.learning_rate", 3e-4),
        (["--optimizer.betas", "0.8,0.99"], "optimizer.betas", [0.8, 0.99]),
        (["--optimizer.betas", "[0.8, 0.99]"], "optimizer.betas", [0.8, 0.99]),
        (["--optimizer.clip", "none"], "optimizer.clip", None),
        (["--optimizer.kind", "sgd"], "optimizer.kind", "sgd"),
        (["--steps", "1e3"], "steps", 1000),
        (["--shuffle", "true"], "shuffle", True),
        (["--names", "a,b"], "names", ["a", "b"]),
        (["--names="], "names", []),
        (["--note", "-1,x=y"], "note", "-1,x=y"),
        (["--note=a=b"], "note", "a=b"),
        (["--note=a=1,a=2"], "note", "a=1,a=2"),
        (["--weights.b-c", "0.5"], "weights.b_c", 0.5),
    ],
)
def test_override_sets_one_key(arguments, key, value):
    changed = to_json(override(BASE, arguments))
    before = f"{key} was "
    assert [sentence.startswith(before) for sentence in difference(BASE, changed)] == [True]
    for part in key.split("."):
        changed = changed[part]
    assert changed == value and type(changed) is type(value)


def test_a_key_of_a_group_that_is_none_switches_the_group_on():
    assert override(BASE, ["--draft.width", "8"]).draft == Model(width=8)
    assert BASE.draft is None, "the original must not change"


def test_none_switches_a_group_off_that_may_be_absent():
    drafting = override(BASE, ["--draft.width", "8"])
    assert override(drafting, ["--draft", "none"]).draft is None
    assert override(BASE, ["--draft=None"]) == BASE
    with pytest.raises(ConfigError, match="'draft.width', or 'none' to leave it out"):
        override(drafting, ["--draft", "8"])
    with pytest.raises(ConfigError, match="set one of its keys, such as 'model.width'$"):
        override(BASE, ["--model", "none"])


def test_no_before_a_truth_denies_it():
    for words in ("--checks.no-self-check", "--checks.no_self_check", "--checks.no-self-check --steps 3"):
        assert override(BASE, words.split()).checks == Checks(self_check=False)
    assert override(Checks(), ["--no-self-check"]) == Checks(self_check=False)
    # A key of that very name is set, as any other.
    assert override(Checks(), ["--no-note", "false"]) == Checks(no_note=False)


def test_a_mapping_is_replaced_whole():
    for text in ("x=2,y=3", '{"x": 2, "y": 3}'):
        assert override(BASE, ["--weights", text]).weights == {"x": 2.0, "y": 3.0}


def test_keys_that_depend_on_each_other_change_together():
    changed = override(BASE, ["--model.heads", "5", "--model.width", "100"])
    assert changed.model == Model(heads=5, width=100)
    assert BASE.model == Model(), "the original must not change"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "--optimizer.learning-rat 1",
            "unknown key 'optimizer.learning-rat' in exp.py: "
            "the nearest valid key is 'optimizer.learning_rate'",
        ),
        (
            "--learning-rate 1",
            "unknown key 'learning-rate' in exp.py: the nearest valid key is 'optimizer.learning_rate'",
        ),
        ("--weights.d 1", "unknown key 'weights.d' in exp.py: the nearest valid key is 'weights.a'"),
        ("--steps abc", "key 'steps' in exp.py must be an integer, but 'abc' was given"),
        ("--steps 3.5", "key 'steps' in exp.py must be an integer, but '3.5' was given"),
        ("--steps 0", "key 'steps' in exp.py must be greater than 0, but '0' was given"),
        ("--shuffle maybe", "key 'shuffle' in exp.py must be true or false, but 'maybe' was given"),
        ("--optimizer.clip x", "key 'optimizer.clip' in exp.py must be a number or none, but 'x' was given"),
        (
            "--optimizer.clip nan",
            "key 'optimizer.clip' in exp.py must be a finite number, but 'nan' was given",
        ),
        (
            "--optimizer.kind lion",
            "key 'optimizer.kind' in exp.py must be one of 'adamw', 'sgd', but 'lion' was given",
        ),
        ("--model.heads 5", "exp.py: model: heads = 5 does not divide width = 64"),
        ("--model big", "key 'model' in exp.py is a group: set one of its keys, such as 'model.width'"),
        ("--sized.size 8", "key 'sized.size' in exp.py cannot be set: 'sized' is none there"),
        ("--draft.widht 8", "unknown key 'draft.widht' in exp.py: the nearest valid key is 'draft.width'"),
        ("--draft.heads 5", "exp.py: draft: heads = 5 does not divide width = 64"),
        ("--steps", "key 'steps' has no value: write --steps VALUE"),
        ("--steps --shuffle true", "key 'steps' has no value: write --steps VALUE"),
        ("--steps true", "key 'steps' in exp.py must be an integer, but 'true' was given"),
        ('--weights {"a":true}', "key 'weights' in exp.py must be a mapping such as name=value"),
        ("--steps 3 --steps=4", "key 'steps' in exp.py is set twice: set it once"),
        (
            "--weights x=1 --weights.a 2",
            "key 'weights.a' in exp.py is set twice, first by 'weights': set it once",
        ),
        ("--weights a=1,a=2", "key 'weights.a' in exp.py is set twice, in 'a=1,a=2': set it once"),
        ('--weights {"a":1,"a":2}', "key 'weights.a' in exp.py is set twice, in '{"),
        (
            "--print-confg",
            "unknown key 'print-confg' in exp.py: the nearest valid option is '--print-config'",
        ),
        ("--stepps --shuffle true", "unknown key 'stepps' in exp.py: the nearest valid key is 'steps'"),
        ("--checks.no-self-check true", "unexpected argument 'true': write --key value or --key=value"),
        (
            "--no-self-check",
            "unknown key 'no-self-check' in exp.py: the nearest valid key is 'checks.self_check'",
        ),
        ("--no-steps 3", "unknown key 'no-steps' in exp.py: the nearest valid key is 'steps'"),
        (
            "--checks.no-self-check --checks.self-check true",
            "key 'checks.self_check' in exp.py is set twice: set it once",
        ),
        ("steps=3", "unexpected argument 'steps=3': write --key value or --key=value"),
    ],
)
def test_a_bad_override_gets_one_sentence(arguments, sentence):
    with pytest.raises(ConfigError) as error:
        override(BASE, arguments.split(), "exp.py", ["--name", "--print-config"])
    assert str(error.value).startswith(sentence)
    assert error.value.exit_code == 2


def test_configurations_are_frozen_and_strict():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.steps = 3
    for wrong in ({"stepz": 3}, {"steps": 2.5}, {"model": {"width": 8, "depth": 3}}):
        with pytest.raises(pydantic.ValidationError):
            Experiment(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"steps": "7"}, {"steps": 8.0}, {"steps": True}, {"shuffle": "no"}, {"weights": {"a": True}}]
)
def test_a_wrong_type_is_refused_and_not_converted(wrong):
    with pytest.raises(pydantic.ValidationError, match="should be a valid"):
        Experiment(**wrong)
    assert Optimizer(clip=2).clip == 2.0, "an integer is a number"


@pytest.mark.parametrize(
    "config",
    [
        BASE,
        dataclasses.replace(BASE, model=DeepModel(width=8), draft=Model(), optimizer=Optimizer(clip=None)),
    ],
    ids=["plain", "subclass and optional"],
)
def test_json_round_trip(config):
    values = json.loads(json.dumps(to_json(config)))
    assert values["type"] == f"{__name__}:Experiment"
    restored = from_json(values)
    assert restored == config and type(restored.model) is type(config.model)


def test_from_json_refuses_what_is_not_a_configuration():
    for values, named in (({}, "'type'"), ({"type": "json:JSONDecoder"}, "json:JSONDecoder")):
        with pytest.raises(ConfigError, match=named):
            from_json(values)
    with pytest.raises(ConfigError, match="unknown key 'stepz' of Experiment in config.json"):
        from_json({"type": f"{__name__}:Experiment", "stepz": 1})


def test_difference_names_every_changed_key():
    changed = dataclasses.replace(BASE, steps=20, weights={"a": 1.0}, optimizer=Optimizer(clip=None))
    assert difference(BASE, BASE) == []
    assert difference(BASE, changed) == [
        "optimizer.clip was 1.0, is None",
        "steps was 10, is 20",
        "weights.b_c was 2.0, is absent",
    ]


def test_describe_lists_every_key():
    lines = describe(BASE).splitlines()
    shown = [" ".join(line.split()) for line in lines]
    assert "--optimizer.learning-rate float = 0.001 the peak of the schedule." in shown
    assert "--optimizer.kind adamw|sgd = adamw its name, its limit." in shown
    assert "--optimizer.clip float|None = 1.0 its name, its limit." in shown
    assert "--weights dict[str, float] = a=1.0,b_c=2.0" in shown
    assert len(lines) == 4 + 2 + 3 + 7


HEADER = "from dataclasses import replace\nfrom test_config import Experiment, Model, Optimizer\n"


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "paper").mkdir(parents=True)

    def write(text, name="child"):
        path = f"experiments/paper/{name}.py"
        (tmp_path / path).write_text(HEADER + text)
        return path

    return write


def test_a_child_experiment_is_its_difference(experiment):
    experiment("def config():\n    return Experiment(steps=7)\n", "parent_of_child")
    child = experiment(
        "from experiments.paper.parent_of_child import config as base\n"
        "def config():\n    return replace(base(), shuffle=True)\n"
    )
    assert difference(BASE, load_experiment(child)) == ["steps was 10, is 7", "shuffle was False, is True"]


def test_a_file_elsewhere_may_start_from_an_experiment_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "shelf").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "experiments/shelf/base.py").write_text(
        HEADER + "def config():\n    return Experiment(steps=7)\n"
    )
    (tmp_path / "mine/longer.py").write_text(
        HEADER + "from experiments.shelf.base import config as base\n"
        "def config():\n    return replace(base(), steps=70)\n"
    )
    assert load_experiment("mine/longer.py").steps == 70


@pytest.mark.parametrize("name", ["json", "my-run"])
def test_an_experiment_may_be_called_like_a_module(tmp_path, name):
    file = tmp_path / f"{name}.py"
    file.write_text(
        "from gptjax.config import configclass\n"
        "@configclass\nclass Odd:\n    steps: int = 1\n"
        "def config():\n    return Odd(steps=4)\n"
    )
    config = load_experiment(file)
    assert sys.modules["json"] is json
    assert pickle.loads(pickle.dumps(config)) == config == from_json(to_json(config))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "experiments/paper/child.py has no function config(): add one that returns"),
        ("def config():\n    return 3\n", "must return a configclass, but returned int"),
        ("def config():\n    return 1 / 0\n", "experiments/paper/child.py, line 4: ZeroDivisionError"),
        ("def config(:\n", "experiments/paper/child.py, line 3: SyntaxError"),
        (
            "def config():\n    return Experiment(optimizer=Optimizer(learning_rat=1))\n",
            "unknown key 'learning_rat' of Optimizer in experiments/paper/child.py, line 4: "
            "the nearest valid key is 'learning_rate'",
        ),
        (
            "def config():\n    return Experiment(model=Model(heads=7))\n",
            "experiments/paper/child.py, line 4: Model: heads = 7 does not divide width = 64",
        ),
        (
            "def config():\n    return Experiment(steps='many')\n",
            "key 'steps' of Experiment in experiments/paper/child.py, line 4 must be an integer, but 'many'",
        ),
    ],
)
def test_a_bad_experiment_gets_one_sentence(experiment, text, sentence):
    with pytest.raises(ConfigError) as error:
        load_experiment(experiment(text))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value).split("SyntaxError")[0]


def test_a_missing_experiment_names_the_nearest(experiment):
    experiment("", "small")
    with pytest.raises(ConfigError) as error:
        load_experiment("experiments/paper/smal.py")
    assert str(error.value) == (
        "there is no experiment file experiments/paper/smal.py: the nearest is experiments/paper/small.py"
    )


def test_a_run_is_called_by_its_path_below_the_experiments():
    assert run_name("experiments/quickstart.py") == "quickstart"
    assert run_name("experiments/bert/pretrain.py") == "bert/pretrain"
    assert run_name("elsewhere/mine.py") == "mine"
