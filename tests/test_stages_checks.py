"""What cannot work is refused before anything is trained: models, lengths, sources, settings of a road."""

import dataclasses
import shutil
import sys
from pathlib import Path

import jax
import pytest
import tiny

from gptjax import cli, environment
from gptjax.config import ConfigError, load_experiment
from gptjax.data.byte_level import ByteLevelTokenizer, byte_characters
from gptjax.data.corpora import read_documents
from gptjax.data.quality import DataError
from gptjax.data.tokenizers import Tokenizer
from gptjax.models.functional import ModelDefinition
from gptjax.overrides import override
from gptjax.runs import mark_done, open_run, write_json_atomic
from gptjax.stages import finetune, ppo, pretrain, reward, road
from gptjax.stages.handover import KINDS, save_model

ROAD = tiny.config(Path("data"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Untrained models: a language and a scalar one of one tokenizer, and a language one of another."""
    folder = tmp_path_factory.mktemp("models")
    documents = read_documents("pydoc")
    for name, kind, start in (("language", "language", 0), ("scalar", "scalar", 0), ("other", "scalar", 40)):
        tokenizer = Tokenizer.train([d.text for d in documents[start : start + 20]], tiny.MODEL.vocab_size)
        params = jax.jit(ModelDefinition(KINDS[kind], tiny.MODEL).initialise)(jax.random.key(0))
        save_model(folder / name, kind, tiny.MODEL, params, tokenizer)
    return folder


@pytest.mark.parametrize(
    ("stage", "changes", "sentence"),
    [
        (finetune, {"base": "scalar"}, "scalar holds a scalar model where a language model is needed"),
        (finetune, {"base": "language", "length": 257}, "length = 257 is longer .* context_length = 256"),
        (reward, {"base": "language", "length": 300}, "length = 300 is longer .* context_length = 256"),
        (
            ppo,
            {"policy": "scalar", "reward": "scalar"},
            "where a language model is needed: name the run folder",
        ),
        (
            ppo,
            {"policy": "language", "reward": "language"},
            "where a scalar model is needed: name the run folder",
        ),
        (ppo, {"policy": "language", "reward": "other"}, "language and .*other have different tokenizers"),
        (
            ppo,
            {"policy": "language", "reward": "scalar", "prompt_length": 251},
            r"prompt_length \+ sampling.max_new_tokens = 257 is longer .* = 256 \(policy = .*language\)",
        ),
        (
            ppo,
            {"policy": "language", "reward": "scalar", "ptx_length": 257},
            "^ptx_length = 257 is longer than the model's context_length = 256",
        ),
    ],
)
def test_a_base_that_does_not_fit_is_refused(models, tmp_path, stage, changes, sentence):
    config = getattr(ROAD, stage.__name__.split(".")[-1])
    places = {key: str(models / changes[key]) for key in ("base", "policy", "reward") if key in changes}
    with pytest.raises(ConfigError, match=sentence):
        stage.run(dataclasses.replace(config, **changes | places), tmp_path)


@pytest.fixture
def gptjax(models, tmp_path, monkeypatch):
    """`gptjax train` of a stage of the tiny road, `experiments/STAGE.py`, beside the models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setattr(environment, "use_compilation_cache", lambda: None)
    Path("models").symlink_to(models)
    Path("experiments").mkdir()
    for stage in ("finetune", "reward", "ppo"):
        text = (
            f"import pathlib, tiny\n\ndef config():\n    return tiny.config(pathlib.Path('data')).{stage}\n"
        )
        Path(f"experiments/{stage}.py").write_text(text)
    return lambda stage, *words: cli.main(["train", f"experiments/{stage}.py", *words])


@pytest.mark.parametrize(
    ("stage", "words", "sentence"),
    [
        (
            "finetune",
            "--base models/language --length 257",
            "length = 257 is longer than the model's context_length = 256 (base = models/language): lower it",
        ),
        ("finetune", "", "base: no base model is named: set base"),
        ("finetune", "--base models/none", "base: models/none holds no finished model: run the stage"),
        (
            "reward",
            "--base models/scalar --length 300",
            "length = 300 is longer than the model's context_length = 256 (base = models/scalar): lower it",
        ),
        (
            "ppo",
            "--policy models/language --reward models/scalar --ptx-length 257",
            "ptx_length = 257 is longer than the model's context_length = 256 (policy = models/language)",
        ),
        (
            "ppo",
            "--policy models/language --reward models/other",
            "the models of policy = models/language and reward = models/other have different tokenizers",
        ),
    ],
)
def test_a_base_that_does_not_fit_is_found_before_the_run_begins(gptjax, capsys, stage, words, sentence):
    assert gptjax(stage, *words.split()) == ConfigError.exit_code
    assert capsys.readouterr().err.startswith(f"error: experiments/{stage}.py: {sentence}")
    assert not Path("runs").exists()


def test_a_finished_run_does_without_its_base(gptjax, capsys):
    config = load_experiment("experiments/finetune.py")
    mark_done(open_run("runs/finetune", config), {"seconds": 1.0, "tokens": 1})
    assert gptjax("finetune") == 0 and "already done" in capsys.readouterr().out


@pytest.mark.parametrize("stored", [True, False])
def test_a_tokenizer_of_another_size_is_refused(models, tmp_path, stored):
    file = models / "language/model/tokenizer.model"
    model = dataclasses.replace(tiny.MODEL, vocab_size=512)
    config = dataclasses.replace(ROAD.pretrain, model=model, corpora={"pydoc": 1.0})
    if stored:
        shutil.copy(file, tmp_path / "tokenizer.model")
    else:
        config = dataclasses.replace(config, tokenizer=str(file))
    with pytest.raises(ConfigError, match=r"tokenizer.model has 384 ids, but model.vocab_size = 512: set"):
        pretrain.run(config, tmp_path)


@pytest.mark.parametrize(
    ("override_words", "sentence"),
    [
        ("--finetune.length 257", "finetune.length = 257 is longer than the model's context_length = 256"),
        ("--reward.length 257", "reward.length = 257 is longer"),
        ("--ppo.prompt-length 251", "ppo.prompt_length + sampling.max_new_tokens = 257 is longer"),
        ("--ppo.ptx-length 257", "ppo.ptx_length = 257 is longer"),
        ("--chat-sampling.max-new-tokens 256", "chat_sampling.max_new_tokens = 256 leaves no room"),
        (
            "--reward.seed 3",
            "reward.seed = 3 has no effect in a road, where every stage takes the road's: set seed",
        ),
        (
            "--finetune.lora.targets querry",
            "finetune.lora.targets: 'querry' names no linear map",
        ),
        ("--ppo.lora.targets querry", "ppo.lora.targets: 'querry' names no linear map"),
        ("--finetune.base runs/x", "finetune.base = 'runs/x' has no effect in a road"),
        ("--reward.base runs/x", "reward.base = 'runs/x' has no effect in a road"),
        ("--ppo.policy runs/x", "ppo.policy = 'runs/x' has no effect in a road"),
        ("--ppo.reward runs/x", "ppo.reward = 'runs/x' has no effect in a road"),
    ],
)
def test_a_road_refuses_settings_that_cannot_work_or_do_nothing(override_words, sentence):
    with pytest.raises(ConfigError) as error:
        override(ROAD, override_words.split(), "exp.py")
    assert sentence in str(error.value)


BUNDLED = dataclasses.replace(
    ROAD,
    pretrain=dataclasses.replace(ROAD.pretrain, corpora={"pydoc": 1.0}),
    finetune=dataclasses.replace(ROAD.finetune, dialogues={"chatterbot": 1.0, "ratings": 1.0}),
    reward=dataclasses.replace(ROAD.reward, source="ratings"),
    ppo=dataclasses.replace(ROAD.ppo, corpora={"pydoc": 1.0}, prompts="ratings"),
)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pretrain.corpora", "shakespear=1"),
        ("finetune.text", "shakespear=1"),
        ("finetune.dialogues", "chatterbox=1"),
        ("reward.source", "rating"),
        ("ppo.corpora", "shakespear=1"),
        ("ppo.dialogues", "chatterbox=1"),
        ("ppo.prompts", "rating"),
    ],
)
def test_an_unknown_source_of_any_stage_is_found_before_the_first(tmp_path, monkeypatch, key, value):
    for stage in (pretrain, finetune, reward, ppo):
        monkeypatch.setattr(stage, "run", lambda *_, **__: pytest.fail("a stage was run"))
    stage, name = key.split(".")[0], value.split("=")[0]
    with pytest.raises(DataError, match=f"^{stage}: there is no bundled source and no file named '{name}'"):
        road.run(override(BUNDLED, [f"--{key}", value]), tmp_path)


def test_bundled_sources_and_files_are_found(tmp_path):
    road.check_sources(BUNDLED)
    (tmp_path / "a.txt").write_text("text")
    files = override(BUNDLED, ["--pretrain.corpora", f"{tmp_path}=1"])
    road.check_sources(files)
    with pytest.raises(DataError, match="has no file that ends in .jsonl"):
        road.check_sources(override(files, ["--reward.source", str(tmp_path)]))


def test_a_field_of_rows_is_a_source_of_a_road(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"zh": "a"}\n')
    road.check_sources(override(BUNDLED, ["--pretrain.corpora", f"{tmp_path}/pairs.jsonl:zh=1"]))


def test_bad_rows_and_tokenizers_without_frames_are_found_before_the_first_stage(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"messages": "hello"}\n')
    for key in ("finetune.dialogues", "ppo.dialogues"):
        with pytest.raises(DataError, match=r"d.jsonl:1 \(malformed field"):
            road.check_sources(override(BUNDLED, [f"--{key}", f"{tmp_path}/d.jsonl=1"]))
    (tmp_path / "r.jsonl").write_text('{"prompt": "p", "chosen": "a"}\n')
    with pytest.raises(DataError, match=r"r.jsonl:1 \(missing field: rejected"):
        road.check_sources(override(BUNDLED, ["--reward.source", f"{tmp_path}/r.jsonl"]))
    pieces = ["<|endoftext|>", *byte_characters()]
    bare = ByteLevelTokenizer.from_pieces(pieces, [3, *[1] * 256], [], "gpt-2")
    bare.save(tmp_path / "tokenizer.json")
    named = override(BUNDLED, ["--pretrain.tokenizer", f"{tmp_path}/tokenizer.json"])
    with pytest.raises(
        DataError, match="tokenizer.json has no <|im_start|> and <|im_end|>".replace("|", r"\|")
    ):
        road.check_sources(named)
    road.check_sources(named, ["reward", "ppo"])  # what is left to do of a road that has fine-tuned


def finished(folder: Path) -> Path:
    """What the road leaves when it is done, without having trained."""
    for name, (_, config) in road.stage_configs(BUNDLED, folder).items():
        mark_done(open_run(folder / name, config), {"seconds": 1.0, "tokens": 1})
    write_json_atomic(open_run(folder, BUNDLED) / "results.json", {"figures": []})
    mark_done(folder, {"seconds": 5.0, "tokens": 5})
    return folder


def test_a_finished_road_that_was_moved_is_still_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gptjax.evaluation.report.write_report", lambda folders: folders[0])
    moved = finished(Path("runs/one")).rename(tmp_path / "two")
    for folder in (moved, Path("two")):
        road.run(BUNDLED, folder)
        assert capsys.readouterr().out.count("already done in") == 5
    config = road.stage_configs(BUNDLED, Path("runs/one"))["finetune"][1]
    with pytest.raises(ConfigError, match="base was 'two/pretrain', is 'runs/one/pretrain'"):
        finetune.run(config, Path("two/finetune"))
