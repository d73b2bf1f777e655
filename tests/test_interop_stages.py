"""An imported model is a model like any other: stages start from it, the command line takes it in and out."""

import io
import json
import sys

import gguf_file
import pytest
from test_interop_gguf import LLAMA, llama_tensors

from gptjax import cli, environment
from gptjax.interop.importing import import_model
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages import finetune
from gptjax.stages.handover import load_model
from gptjax.training.optimizers import OptimizerConfig

pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")


pytestmark = pytest.mark.slow


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a GGUF file, the compilation cache left alone."""
    gguf_file.write(tmp_path / "tiny.gguf", LLAMA | {"llama.context_length": 96}, llama_tensors())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "use_compilation_cache", lambda: None)
    return tmp_path


def test_in_chat_and_out_by_the_command_line(workplace, monkeypatch, capsys):
    assert cli.main(["import", "tiny.gguf", "--runs", "elsewhere"]) == 0
    assert capsys.readouterr().out == "imported into elsewhere/tiny\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi 漢字\n/quit\n"))
    assert cli.main(["chat", "elsewhere/tiny", "--max-new-tokens", "4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert cli.main(["export", "elsewhere/tiny", "--to", "hf", "--output", "out"]) == 0
    assert "exported elsewhere/tiny (llama, 78,400 parameters) into out" in capsys.readouterr().out
    assert cli.main(["import", "out", "--name", "back"]) == 0
    first, back = (load_model(run, make_mesh(MeshConfig())) for run in ("elsewhere/tiny", "runs/back"))
    assert first.digest == back.digest
    assert first.chat.system_message == back.chat.system_message == "You are terse"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["import", "gone.gguf"], 2, "there is nothing at gone.gguf"),
        (["import", "damaged.gguf"], 65, "damaged.gguf is not a GGUF file"),
        (["export", "gone", "--to", "hf", "--output", "out"], 2, "there is no run in gone"),
    ],
)
def test_a_mistake_is_one_sentence_and_an_exit_code(workplace, capsys, words, code, sentence):
    (workplace / "damaged.gguf").write_bytes(b"PK\x03\x04 and so on")
    assert cli.main(words) == code
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1


def test_another_chat_template_is_said_so(workplace, capsys):
    template = {"tokenizer.chat_template": "{{ '[INST]' + messages[0]['content'] }}"}
    path = gguf_file.write(workplace / "inst.gguf", LLAMA | template, llama_tensors())
    assert load_model(import_model(path, "run"), make_mesh(MeshConfig())).chat.system_message == ""
    said = capsys.readouterr().out
    assert (
        "its chat template is none of those that gptjax has" in said and "in ChatML, which it was not" in said
    )


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_fine_tuning_starts_from_an_imported_model(workplace):
    base = import_model("tiny.gguf", "base")
    dialogues = [
        [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n + 1}."}]
        for n in range(40)
    ]
    (workplace / "own.jsonl").write_text("".join(json.dumps({"messages": d}) + "\n" for d in dialogues))
    config = finetune.FinetuneConfig(
        base=str(base),
        dialogues={"own.jsonl": 1.0},
        length=96,
        batch_size=2,
        steps=2,
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )
    finetune.run(config, workplace / "tuned")
    before, after = (load_model(run, make_mesh(MeshConfig())) for run in (base, "tuned"))
    assert after.tokenizer.hash == before.tokenizer.hash and after.digest != before.digest
