"""Forms of dialogue other than ChatML: the ids by hand, and which form a template's text is of."""

import copy
import time

import pytest
from published_templates import OTHERS, PUBLISHED

from gptjax.data.chat_templates import TEMPLATES, ChatForm, check_can_chat, prompt_ids, stop_ids
from gptjax.data.quality import DataError
from gptjax.interop.chat_template_texts import MARKS, TEXTS, chat_template, recognised

DIALOGUE = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "Hi "},
    {"role": "assistant", "content": " Hello"},
    {"role": "user", "content": "Why?"},
]


class Spelt:
    """A tokenizer whose ids of a text are the text."""

    bos_id, end_of_text_id, chatml = 1, 2, False
    specials = {"<|start_header_id|>": 3, "<|end_header_id|>": 4, "<|eot_id|>": 5}

    def encode(self, text):
        return [text]


class Unbegun(Spelt):
    """One without a piece before a text."""

    bos_id = None


class Unframed(Unbegun):
    """Nor with pieces that frame messages."""

    specials = {}


EXPECTED = {
    "llama2": [
        *(1, "[INST] <<SYS>>\nBe brief. \n<</SYS>>\n\nHi [/INST] Hello ", 2),
        *(1, "[INST] Why? [/INST]"),
    ],
    "mistral": [1, "[INST] Be brief. \n\nHi  [/INST] Hello", 2, "[INST] Why? [/INST]"],
    "mistral, spaced": [1, "[INST] Be brief. \n\nHi  [/INST]  Hello", 2, "[INST] Why? [/INST]"],
    "llama3": [
        *(1, 3, "system", 4, "\n\nBe brief.", 5, 3, "user", 4, "\n\nHi", 5),
        *(3, "assistant", 4, "\n\nHello", 5, 3, "user", 4, "\n\nWhy?", 5, 3, "assistant", 4, "\n\n"),
    ],
}
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
EXPECTED["llama3.1"] = [
    f"\n\n{DATES}Be brief." if part == "\n\nBe brief." else part for part in EXPECTED["llama3"]
]


@pytest.mark.parametrize("form", TEMPLATES)
def test_dialogues_by_hand(form):
    assert prompt_ids(DIALOGUE, Spelt(), form) == EXPECTED[form]
    without = [part for part in EXPECTED[form] if part != 1]
    assert prompt_ids(DIALOGUE, Unbegun(), form) == without


def test_llama_3_1_has_a_system_message_in_every_dialogue():
    ids = prompt_ids(DIALOGUE[1:2], Spelt(), "llama3.1")
    assert ids[:6] == [1, 3, "system", 4, f"\n\n{DATES}", 5]
    assert prompt_ids(DIALOGUE[1:2], Spelt(), "llama3")[:4] == [1, 3, "user", 4]


def test_chatml_begins_with_a_piece_where_its_template_does(byte_level):
    plain = prompt_ids(DIALOGUE, byte_level)
    assert prompt_ids(DIALOGUE, byte_level, "bos+chatml") == plain
    begun = copy.copy(byte_level)
    begun.bos_id = 7
    assert prompt_ids(DIALOGUE, begun, "bos+chatml") == [7, *plain] != prompt_ids(DIALOGUE, begun)


def test_what_ends_a_reply(byte_level):
    assert stop_ids(byte_level, ChatForm()) == [byte_level.im_end_id, byte_level.end_of_text_id]
    assert stop_ids(Spelt(), ChatForm(template="llama3", stop_ids=(9, 2))) == [5, 2, 9]
    assert stop_ids(Spelt(), ChatForm(template="llama2")) == stop_ids(Unframed(), ChatForm()) == [2]
    check_can_chat(byte_level, "chatml")
    check_can_chat(Unframed(), "llama2")
    with pytest.raises(DataError, match="can't chat: import one that was taught chatml, llama2, mistral, "):
        check_can_chat(Unframed(), "chatml")


@pytest.mark.parametrize("form", PUBLISHED)
def test_the_form_of_a_published_template(form, byte_level):
    assert recognised(PUBLISHED[form], Spelt()) == form
    assert recognised(PUBLISHED[form].replace("\\n", "\n"), Spelt()) == form
    # ChatML's name is in none of them; LLaMA 3's pieces must be the tokenizer's.
    assert recognised(PUBLISHED[form], Unframed()) == (None if "3" in form else form)


def test_a_dialogue_that_is_nearly_of_a_form_is_not_of_it(byte_level):
    chatml = chat_template(ChatForm())
    phi = chatml.replace("message['role'] + '\n'", "message['role'] + '<|im_sep|>'")
    assert recognised(chatml, byte_level) == "chatml" and recognised(phi, byte_level) is None
    # Where [INST] is one piece, letters are not what the model was taught.
    framed = copy.copy(Unframed())
    framed.specials = {"[INST]": 3, "[/INST]": 4}
    assert recognised(PUBLISHED["mistral"], framed) is None


@pytest.mark.parametrize("name", OTHERS)
def test_another_template_is_not_taken_for_one_of_them(name):
    assert recognised(OTHERS[name], Spelt()) is None


def test_what_is_written_is_of_the_same_form(byte_level):
    assert set(TEXTS) == set(MARKS) == set(TEMPLATES)
    for form in TEMPLATES:
        assert recognised(chat_template(ChatForm(template=form)), Spelt()) == form
    for form in ("chatml", "bos+chatml"):
        assert recognised(chat_template(ChatForm("Be brief.", form)), byte_level) == form
        assert recognised(chat_template(ChatForm("Be brief.", form)), Spelt()) is None


@pytest.mark.parametrize("text", [" " * 10**5, "{{" * 10**5, "| " * 10**5, "{{ " * 10**5, "\n" * 10**5])
def test_a_template_that_is_made_to_take_long_does_not(text):
    begun = time.process_time()
    assert recognised(text, Spelt()) is None
    assert time.process_time() - begun < 5  # 0.3 s; in the square of the length it would take minutes
