"""`gptjax verify`: whatever of a run is not as it was written is named."""

import json
import shutil
from pathlib import Path

import pytest
import tiny

from gptjax import cli
from gptjax.stages import pretrain
from gptjax.stages.road import stage_configs

pytestmark = [pytest.mark.slow, pytest.mark.fault(name="damage")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A road's folder with its finished pretraining."""
    root = tmp_path_factory.mktemp("verify")
    config = tiny.config(tiny.write_data(root / "data"))
    road = root / "road"
    pretrain.run(stage_configs(config, road)["pretrain"][1], road / "pretrain")
    return road


def verify(folder, capsys):
    code = cli.main(["verify", str(folder)])
    return code, capsys.readouterr().out


def test_a_whole_run_is_as_it_was_written(finished, capsys):
    code, said = verify(finished / "pretrain", capsys)
    assert code == 0 and "WRONG" not in said, said
    for check in (
        "config.json is a PretrainConfig",
        "config.json is that of the last start",
        "one line for every step to 12",
        "checkpoint 9: ",
        "goes on after step 12 of the data",
        "checkpoint 12: its tokenizer",
        "parameters are those that were handed over",
        "all is as it was written",
    ):
        assert check in said, said


def change_config(folder):
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))


def flip(pattern):
    def change(folder):
        file = max(folder.glob(pattern), key=lambda path: path.stat().st_size)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)

    return change


def drop_a_line(folder):
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4] + lines[5:]))


def rename_checkpoint(folder):
    (folder / "checkpoints" / "12").rename(folder / "checkpoints" / "11")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (change_config, "config.json is not that of the last start"),
        (flip("checkpoints/12/**/d/*"), "checkpoints/12 is damaged: state/"),
        (flip("checkpoints/9/integrity.json"), "checkpoints/9 is damaged: integrity.json"),
        (flip("tokenizer.model"), "is not that of"),
        (flip("model/params/**/[0-9]*"), "model: "),
        (drop_a_line, "metrics.jsonl does not have one line for every step"),
        (rename_checkpoint, "checkpoint 11: goes on after step 12 of the data"),
    ],
)
def test_a_change_is_named(finished, tmp_path, capsys, change, sentence):
    folder = Path(shutil.copytree(finished / "pretrain", tmp_path / "pretrain"))
    change(folder)
    code, said = verify(folder, capsys)
    wrong = [line for line in said.splitlines() if line.startswith("WRONG")]
    assert code == 65 and any(sentence in line for line in wrong), said


def test_all_stages_of_a_road_are_looked_at(finished, capsys):
    (finished / "config.json").write_text((finished / "pretrain" / "config.json").read_text())
    code, said = verify(finished, capsys)
    assert code == 0 and f"ok  {finished / 'pretrain'}: " in said, said
    assert json.loads((finished / "pretrain" / "done.json").read_text())
