"""Instructions with an output, and perhaps an input, in the form of Alpaca (Taori et al. 2023).

They are a prompt and a reply, in parts with a blank line between them. The wording is our own.
"""

from gptjax.data.files import is_utf8
from gptjax.data.quality import missing_of

ALONE = "Below is an instruction that says what to do. Write a reply that does it."
WITH_INPUT = "Below are an instruction that says what to do, and its input. Write a reply that does it."


def instruction_prompt(instruction: str, given: str = "") -> str:
    """The prompt: a preamble, the instruction, the input where there is one, and where the reply begins.

    Args:
        instruction: what is to be done.
        given: the input; "" for none.
    """
    parts = [WITH_INPUT if given else ALONE, f"### Instruction:\n{instruction}"]
    parts += [f"### Input:\n{given}"] if given else []
    return "\n\n".join([*parts, "### Response:"])


def dialogue_of_instruction(row: dict) -> tuple[str, list[dict[str, str]]]:
    """The kind of fault of a row ("" for none), and its dialogue of a prompt and a reply.

    Args:
        row: `{"instruction", "input", "output"}` as in Alpaca's data, or, as the seed tasks of Self-Instruct,
            `{"instruction", "instances": [{"input", "output"}]}`, of which the first instance counts.
    """
    instances = row.get("instances", [row])
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        return "malformed field: instances must be a list of objects", []
    instance = instances[0]
    if missing := missing_of(instance, ("output",)):
        return missing, []
    texts = [row["instruction"], instance.get("input", ""), instance["output"]]
    if not all(isinstance(text, str) for text in texts):
        return "malformed field: instruction, input and output must be texts", []
    if not all(map(is_utf8, texts)):
        return "not UTF-8", []
    instruction, given, output = (text.strip() for text in texts)
    if not instruction or not output:
        return "empty text", []
    prompt = instruction_prompt(instruction, given)
    return "", [{"role": "user", "content": prompt}, {"role": "assistant", "content": output}]
