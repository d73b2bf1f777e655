"""The terminal chat, driven by lines of text."""

import io
import json

import pytest

from gptjax.config import ConfigError
from gptjax.serving.terminal import Settings, chat


class Parrot:
    """Answers with the number of its call; a token is a word. `before` may interrupt it."""

    context_length = 20

    def __init__(self, pieces=("one ", "two ", "three"), interrupt_at=None):
        self.pieces, self.interrupt_at, self.calls = pieces, interrupt_at, []

    def stream(self, messages, **sampling):
        self.calls.append((messages, sampling))
        for i, piece in enumerate(self.pieces):
            if i == self.interrupt_at:
                raise KeyboardInterrupt
            yield piece

    def prompt_length(self, messages):
        return sum(len(message["content"].split()) for message in messages)


def talk(engine, *lines, settings=None):
    """Feeds the lines; an exception among them is raised where input was awaited. Returns what was shown."""
    script, out = iter(lines), io.StringIO()

    def read():
        line = next(script, None)
        if line is None:
            raise EOFError
        if isinstance(line, type):
            raise line
        return line

    chat(engine, settings or Settings(max_new_tokens=5), read=read, out=out)
    return out.getvalue()


def user(text):
    return {"role": "user", "content": text}


def assistant(text="one two three"):
    return {"role": "assistant", "content": text}


def test_replies_stream_and_become_part_of_the_dialogue():
    engine = Parrot()
    shown = talk(engine, "hello", "and now", "/quit", "never read")
    assert shown.count("one two three\n") == 2
    assert [messages for messages, _ in engine.calls] == [
        [user("hello")],
        [user("hello"), assistant(), user("and now")],
    ]


def test_retry_draws_anew_and_undo_takes_back():
    engine = Parrot()
    talk(engine, "a", "/retry", "b", "/undo", "c", "/new", "d", settings=Settings(seed=7, max_new_tokens=5))
    assert [messages for messages, _ in engine.calls] == [
        [user("a")],
        [user("a")],
        [user("a"), assistant(), user("b")],
        [user("a"), assistant(), user("c")],
        [user("d")],
    ]
    assert [sampling["seed"] for _, sampling in engine.calls] == [7, 8, 9, 10, 11]


def test_ctrl_c_keeps_the_partial_reply_and_the_session():
    engine = Parrot(interrupt_at=2)
    shown = talk(engine, "a", "b")
    assert "one two  (stopped)\n" in shown
    assert engine.calls[1][0] == [user("a"), assistant("one two "), user("b")]


def test_ctrl_c_at_the_prompt_explains_how_to_leave():
    engine = Parrot()
    shown = talk(engine, KeyboardInterrupt, "a")
    assert "Ctrl-D or /quit leaves" in shown and len(engine.calls) == 1


def test_set_changes_what_the_engine_gets():
    engine = Parrot()
    talk(
        engine,
        "/set temperature 0",
        "/set top-k 5",
        "/set top_p 0.5",
        "/set max_new_tokens 3",
        "/set seed 9",
        "/set system Be kind.",
        "a",
    )
    messages, sampling = engine.calls[0]
    assert messages == [{"role": "system", "content": "Be kind."}, user("a")]
    assert sampling == {"temperature": 0.0, "top_k": 5, "top_p": 0.5, "max_new_tokens": 3, "seed": 9}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/set warmth 1", "unknown setting 'warmth': the settings are temperature, top_k, top_p"),
        ("/set temperature hot", "temperature must be a number, but 'hot' was given"),
        ("/set temperature -1", "temperature must be at least 0.0, but -1 was given"),
        ("/set temperature nan", "temperature must be at least 0.0, but nan was given"),
        ("/set top_k 2.5", "top_k must be an integer, but '2.5' was given"),
        ("/set top_p 1.5", "top_p must be above 0 and at most 1, but 1.5 was given"),
        ("/set max_new_tokens 0", "max_new_tokens must be at least 1, but 0 was given"),
        ("/set seed", "write /set seed VALUE"),
        ("/set seed -1", "seed must be at least 0, but -1 was given"),
        ("/set seed 4294967296", "seed must be below 2**32 = 4294967296, but 4294967296 was given"),
        ("/hlep", "unknown command /hlep: did you mean /help?"),
        ("/retry", "there is no question to answer again"),
        ("/undo", "there is nothing to take back"),
        ("/save", "there is nothing to save yet"),
    ],
)
def test_a_mistake_gets_a_sentence_and_the_session_goes_on(line, sentence):
    engine = Parrot()
    shown = talk(engine, line, "still here")
    assert f"error: {sentence}" in shown and len(engine.calls) == 1


def test_settings_from_the_command_line_are_checked_too():
    with pytest.raises(ConfigError, match="the settings are"):
        Settings().set("warmth", "1")


def test_save_appends_rows_that_training_reads(tmp_path):
    from gptjax.data.chat import read_dialogues
    from gptjax.data.quality import BadRows

    path = tmp_path / "chat.jsonl"
    talk(Parrot(), "a", f"/save {path}", "/new", "b", f"/save {path}")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"messages": [user("a"), assistant()]}, {"messages": [user("b"), assistant()]}]
    bad_rows = BadRows()
    read = read_dialogues(path, split="train", bad_rows=bad_rows) + read_dialogues(path, split="heldout")
    assert sorted(map(str, read)) == sorted(str(row["messages"]) for row in rows)
    bad_rows.check(0.0)


def test_save_leaves_out_questions_without_a_reply_and_says_how_many(tmp_path):
    class Mute(Parrot):
        def stream(self, messages, **sampling):
            self.pieces = ("one",) if len(self.calls) == 1 else ()
            return super().stream(messages, **sampling)

    path = tmp_path / "chat.jsonl"
    shown = talk(Mute(), "a", f"/save {path}", "b", "c", f"/save {path}")
    assert "error: there is nothing to save yet: no question has a reply" in shown
    assert f"(appended to {path}, less 2 without a reply)" in shown
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"messages": [user("b"), assistant("one")]}
    ]


def test_ctrl_c_while_the_prompt_is_fitted_keeps_the_session():
    class Slow(Parrot):
        def prompt_length(self, messages):
            if len(messages) == 1:
                raise KeyboardInterrupt
            return super().prompt_length(messages)

    engine = Slow()
    shown = talk(engine, "a", "b")
    assert "(stopped)\n" in shown and shown.endswith("one two three\n")
    assert engine.calls[0][0] == [user("a"), assistant(""), user("b")]


def test_seeds_start_over_after_the_last():
    engine = Parrot()
    talk(engine, "a", "b", settings=Settings(seed=2**32 - 1, max_new_tokens=5))
    assert [sampling["seed"] for _, sampling in engine.calls] == [2**32 - 1, 0]


def test_a_pipe_that_is_not_utf8_is_read(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    engine = Parrot()
    chat(engine, Settings(max_new_tokens=5), out=io.StringIO())
    assert engine.calls[0][0] == [user("caf\N{REPLACEMENT CHARACTER}")]


def test_a_file_that_cannot_be_written_is_an_error_not_a_crash(tmp_path):
    shown = talk(Parrot(), "a", f"/save {tmp_path}")
    assert f"error: {tmp_path} cannot be written" in shown


def test_the_oldest_turns_leave_when_the_context_is_full():
    engine = Parrot()  # 20 words; 5 are kept for the reply, so 15 may be read
    shown = talk(engine, "a b c d", "e f g h", "i j k", "/save /dev/null")
    # 4 + 3 + 4 + 3 + 3 = 17 words: the first turn goes.
    assert engine.calls[1][0] == [user("a b c d"), assistant(), user("e f g h")]
    assert engine.calls[2][0] == [user("e f g h"), assistant(), user("i j k")]
    assert shown.count("no longer sees its oldest turns") == 1


def test_a_message_longer_than_the_context_is_refused_and_forgotten():
    engine = Parrot()
    shown = talk(engine, "w " * 20, "short")
    assert "error: the message takes 20 tokens, but the model reads 20: shorten it" in shown
    assert [messages for messages, _ in engine.calls] == [[user("short")]]


def test_the_reply_is_kept_within_the_context():
    engine = Parrot()
    talk(engine, "w " * 16, settings=Settings(max_new_tokens=50))
    assert engine.calls[0][1]["max_new_tokens"] == 4


def test_escape_sequences_do_not_reach_the_terminal():
    shown = talk(Parrot(pieces=("a\x1b[2Jb\n", "\tc\x07é")), "hello")
    assert "\x1b" not in shown and "\x07" not in shown
    assert "a\N{REPLACEMENT CHARACTER}[2Jb\n\tc\N{REPLACEMENT CHARACTER}é" in shown
