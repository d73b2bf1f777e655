"""What the stages make of sources: nothing is cut, left out or refused without a word."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from gptjax.data.preferences import RankedArrays
from gptjax.data.quality import BadRows, DataError
from gptjax.sharding.mesh import MeshConfig
from gptjax.stages.dialogue_rows import dialogue_rows, encode_dialogues, read_source, text_rows
from gptjax.stages.ppo_data import read_prompts
from gptjax.stages.reward_data import read_groups, rows_needed


def turns(*contents):
    return [{"role": ("user", "assistant")[n % 2], "content": c} for n, c in enumerate(contents)]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(example, tokenizer):
    """The assistant's words of an example, `<E>` where a message ends."""
    ids = [id for id, on in zip(*example, strict=True) if on]
    return "".join("<E>" if id == tokenizer.im_end_id else tokenizer.decode([id]) for id in ids)


@pytest.fixture
def dialogues(tmp_path):
    """2,000 dialogues, in line 7 one without an answer, ten of them twice."""
    rows = [{"messages": turns(f"question {n}", f"answer {n}")} for n in range(1990)]
    rows += rows[100:110]
    rows[6] = {"messages": turns("and now?")}
    return written(tmp_path / "dialogues.jsonl", rows)


def test_a_dialogue_is_cut_after_its_last_whole_reply(tokenizer):
    messages = turns("a", "one two", "b", "word " * 50)
    (example,), kept, counted = encode_dialogues([(messages, ("my.jsonl", 1))], tokenizer, 40, "my.jsonl")
    assert said(example, tokenizer) == "one two<E>" and example[0][-1] == tokenizer.im_end_id
    assert kept == [messages]
    assert counted == "1 dialogues, 1 cut to fit, 0 of 1 rows are bad"


def test_a_line_end_that_does_not_fit_is_no_cut(tokenizer):
    messages = turns("a", "one two")
    whole = encode_dialogues([(messages, None)], tokenizer, 100, "x")[0][0]
    fitted, _, counted = encode_dialogues([(messages, None)], tokenizer, len(whole[0]) - 2, "x")
    assert said(fitted[0], tokenizer) == "one two<E>" and "0 cut to fit" in counted


def test_a_dialogue_without_room_for_a_reply_is_named_by_file_and_line(tmp_path, tokenizer):
    rows = [{"messages": turns(f"{n}", "yes")} for n in range(30)]
    rows[20:20] = [rows[0], {"messages": turns("why?", "word " * 50)}]
    file = written(tmp_path / "my.jsonl", rows)
    with pytest.raises(DataError, match=r"1 of \d+ rows are bad .*my.jsonl:22 \(longer than the context\)"):
        for split in ("train", "heldout"):
            dialogue_rows([str(file)], split, stage="s", tokenizer=tokenizer, length=40, seed=0, rewordings=7)


def test_a_bundled_reply_that_does_not_fit_is_cut(tokenizer):
    (example,), _, counted = encode_dialogues([(turns("a", "word " * 50), None)], tokenizer, 40, "ratings")
    assert len(example[0]) == 41 and "<E>" not in said(example, tokenizer)
    assert "1 cut to fit, 0 of 1 rows are bad" in counted
    with pytest.raises(DataError, match=r"ratings:1 \(longer than the context\)"):
        encode_dialogues([(turns("word " * 50, "a"), None)], tokenizer, 40, "ratings")


def test_long_replies_of_a_file_are_cut_when_asked_for(tokenizer):
    place = ("my.jsonl", 1)
    rows = [(turns("a", "word " * 50), place), (turns("word " * 50, "a"), place)]
    examples, kept, counted = encode_dialogues(rows, tokenizer, 40, "my.jsonl", cut_long=True)
    assert [len(example[0]) for example in examples] == [41] and kept == [rows[0][0]]
    assert counted.startswith("1 dialogues, 1 cut to fit, 1 left out without room for a reply, 0 of 1 rows")


def test_a_line_says_what_was_read_dropped_and_reworded(dialogues, tokenizer, capsys):
    layout = {"tokenizer": tokenizer, "length": 100}
    rows = dialogue_rows([str(dialogues)], "train", stage="finetune", seed=0, rewordings=1, **layout)
    (line,) = capsys.readouterr().out.splitlines()
    read = "1 of 2000 rows are bad (1 no reply), 10 left out that occur twice"
    assert line.startswith(f"finetune: {dialogues} (train): read: {read}; ")
    count = len(read_source(str(dialogues), "train", BadRows(), 0))
    sentence = f"{count} dialogues, 0 cut to fit, 0 of {count} rows are bad; {count} noisy copies, 0 too long"
    assert f"{sentence} and left out" in line
    segments = rows[str(dialogues)]["segment_ids"]
    assert segments.max(1).sum() == 2 * count


def test_noisy_copies_that_do_not_fit_are_left_out_and_counted(tmp_path, tokenizer, capsys):
    messages = [turns(f"what is {n}", "yes it is") for n in range(20)]
    file = written(tmp_path / "my.jsonl", [{"messages": m} for m in messages])
    ids = [len(e[0]) for e in encode_dialogues([(m, None) for m in messages], tokenizer, 99, "x")[0]]
    layout = {"tokenizer": tokenizer, "length": max(ids) - 2}
    rows = dialogue_rows([str(file)], "train", stage="s", seed=0, rewordings=7, **layout)
    made, left_out = (int(part.split()[0]) for part in capsys.readouterr().out.split("; ")[-1].split(", "))
    assert left_out > 0 and (made + left_out) % 7 == 0
    assert rows[str(file)]["segment_ids"].max(1).sum() == made + (made + left_out) // 7


def test_prompts_and_plain_text_say_what_was_left_out(dialogues, tmp_path, tokenizer, capsys):
    prompts = read_prompts(str(dialogues), "train", 0)
    read = "read: 1 of 2000 rows are bad (1 no reply), 10 left out that occur twice"
    assert capsys.readouterr().out == f"prompts: {dialogues} (train): {read}; {len(prompts)} dialogues\n"
    texts = written(tmp_path / "text.jsonl", [{"text": f"text {n}" if n else ""} for n in range(1000)])
    text_rows([str(texts)], tokenizer=tokenizer, length=32)
    line = capsys.readouterr().out
    assert line.startswith(f"text of {texts}: read: 1 of 1000 rows are bad (1 empty text); ")


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (8, 8), (3, 4)])
def test_too_few_rankings_are_an_error_before_training(tmp_path, count, batch_size):
    rows = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(count)]
    source = str(written(tmp_path / "r.jsonl", rows))
    config = SimpleNamespace(source=source, batch_size=batch_size, half="both")
    with pytest.raises(DataError, match=rf"r.jsonl gives \d rankings .* batch_size = {batch_size} and 1"):
        read_groups(config)


def test_rankings_that_leave_no_batch_are_an_error():
    arrays = RankedArrays(np.zeros((2, 2, 8), int), np.ones((2, 2), int), np.zeros((2, 2)), np.arange(2))
    with pytest.raises(DataError, match="2 rankings are left, fewer than the 4 of a batch"):
        rows_needed(arrays, np.zeros((0, 4), int), 8, 1, MeshConfig())
