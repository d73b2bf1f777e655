"""Dialogues as ChatGLM-6B reads them, by its released code: numbered rounds, and the reply a blank."""

from gptjax.data.chat import Messages
from gptjax.data.infilling import Arrays, BlankIds, blank_example
from gptjax.data.quality import DataError
from gptjax.data.tokenizers import Tokenizer


def round_prompt(messages: Messages) -> str:
    """What ChatGLM-6B is asked: the question alone, or after earlier rounds all of them, numbered.

    Raises:
        DataError: there is a system message, for which the form has no place.
    """
    if messages[0]["role"] == "system":
        raise DataError("ChatGLM's rounds have no place for a system message: leave it out")
    said = [message["content"] for message in messages]
    if len(said) == 1:
        return said[0]
    rounds = [
        f"[Round {i}]\n问：{q}\n答：{a}\n"
        for i, (q, a) in enumerate(zip(said[:-1:2], said[1::2], strict=True))
    ]
    return "".join(rounds) + f"[Round {len(rounds)}]\n问：{said[-1]}\n答："


def reply_examples(messages: Messages, tokenizer: Tokenizer, ids: BlankIds) -> list[Arrays]:
    """Each reply of a dialogue as the [gMASK] after its prompt, in the layout of `blank_example`."""
    examples = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = tokenizer.encode(round_prompt(messages[:turn]))
            reply = tokenizer.encode(message["content"])
            blank = (len(prompt), len(prompt) + len(reply))
            examples.append(blank_example(prompt + reply, [blank], [0], ids.document, ids, cls=False))
    return examples
