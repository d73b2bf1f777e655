"""Instructions in Alpaca's form: prompts with an input and without, both kinds of rows, bad rows counted."""

import json

import pytest

from experiments.external_data import external
from gptjax.config import ConfigError
from gptjax.data.chat import read_dialogues
from gptjax.data.instructions import ALONE, WITH_INPUT, dialogue_of_instruction, instruction_prompt
from gptjax.data.quality import BadRows


def test_the_prompt_has_its_parts_with_a_blank_line_between_them():
    assert instruction_prompt("Count.") == f"{ALONE}\n\n### Instruction:\nCount.\n\n### Response:"
    expected = f"{WITH_INPUT}\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:"
    assert instruction_prompt("Add.", "1 and 2") == expected


TEXTS = "malformed field: instruction, input and output must be texts"


def test_alpaca_s_rows_and_self_instruct_s_are_the_same_dialogue():
    instance = {"input": " 1 and 2\n", "output": "3 "}
    fault, dialogue = dialogue_of_instruction({"instruction": "Add."} | instance)
    assert fault == ""
    assert dialogue == [
        {"role": "user", "content": instruction_prompt("Add.", "1 and 2")},
        {"role": "assistant", "content": "3"},
    ]
    seed = {"instruction": "Add.", "instances": [instance, {"input": "x", "output": "y"}]}
    assert dialogue_of_instruction(seed) == ("", dialogue)
    without = dialogue_of_instruction({"instruction": "Count.", "output": "1"})[1]
    assert without[0]["content"] == instruction_prompt("Count.")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"instruction": "Add."}, "missing field: output"),
        ({"instruction": "Add.", "instances": []}, "malformed field: instances must be a list of objects"),
        ({"instruction": "Add.", "instances": ["x"]}, "malformed field: instances must be a list of objects"),
        ({"instruction": 7, "output": "x"}, TEXTS),
        ({"instruction": "Add.", "input": None, "output": "x"}, TEXTS),
        ({"instruction": "Add.", "output": "\ud800"}, "not UTF-8"),
        ({"instruction": "Add.", "output": " "}, "empty text"),
        ({"instruction": "", "output": "x"}, "empty text"),
    ],
)
def test_a_bad_row_has_a_kind(row, fault):
    assert dialogue_of_instruction(row) == (fault, [])


def test_files_may_mix_both_and_messages(tmp_path):
    rows = [{"instruction": f"Say {n}.", "output": str(n)} for n in range(30)]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"messages": messages}])
    )
    found = [read_dialogues(tmp_path / "d.jsonl", split=split) for split in ("train", "heldout")]
    assert sum(map(len, found)) == 31 and messages in found[0] + found[1]


def test_the_seed_tasks():
    try:
        path = external("sft/self_instruct_seed_tasks.jsonl")
    except ConfigError as error:
        pytest.skip(str(error))
    counts = BadRows()
    train, heldout = (read_dialogues(path, split=s, bad_rows=counts) for s in ("train", "heldout"))
    assert len(train) + len(heldout) == 175 and len(heldout) == 20 and counts.bad_rows == 0
    assert sum(WITH_INPUT in messages[0]["content"] for messages in train + heldout) == 125
