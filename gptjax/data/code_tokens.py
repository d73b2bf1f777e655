"""Tokens for code, added to a tokenizer that was learnt from prose (Chen et al. 2021, section 3.2).

Runs of 2 to 25 spaces become one token each, and three special tokens mark the parts of a text whose middle
is to be filled in (Bavarian et al. 2022, section 3).
"""

import json

import numpy as np

from gptjax.data.byte_level import ByteLevelTokenizer
from gptjax.data.quality import DataError
from gptjax.data.tokenizers import SPACE_MARK, Tokenizer

LONGEST_RUN = 25
RUNS = tuple(" " * spaces for spaces in range(2, LONGEST_RUN + 1))
INFILLING = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")

AnyTokenizer = Tokenizer | ByteLevelTokenizer


def add_code_tokens(tokenizer: AnyTokenizer) -> AnyTokenizer:
    """The tokenizer with tokens for runs of 2 to 25 spaces and for infilling.

    Old ids keep their meaning, so that a model needs no more than new rows in its embeddings. A run of spaces
    is cut from the left into the longest tokens, before anything is merged. A run that SentencePiece had
    learnt keeps its id; one that a byte-level tokenizer had learnt gets a new one, which is used. Text can no
    more produce an infilling token than any other special one.

    Raises:
        DataError: it has infilling tokens already, or is neither ours nor byte-level.
    """
    if type(tokenizer) is ByteLevelTokenizer:
        return _added_to_byte_level(tokenizer)
    if type(tokenizer) is not Tokenizer:
        raise DataError(
            f"tokens for code are added to our own and to byte-level tokenizers, and this is a "
            f"{type(tokenizer).__name__}: leave out code_tokens"
        )
    return _added_to_sentencepiece(tokenizer)


def infilling_ids(tokenizer: AnyTokenizer) -> tuple[int, int, int]:
    """Ids of prefix, middle and suffix. Raises DataError where there are none."""
    if isinstance(tokenizer, ByteLevelTokenizer):
        found = tuple(tokenizer.specials.get(piece, -1) for piece in INFILLING)
    else:
        written = {piece: id for id, (piece, _, kind) in enumerate(tokenizer.pieces()) if kind == "control"}
        found = tuple(written.get(piece, -1) for piece in INFILLING)
    if -1 in found:
        raise DataError(f"the tokenizer lacks {', '.join(INFILLING)}: add them with add_code_tokens")
    return found


def with_infilling(
    text: str, tokenizer: AnyTokenizer, rng: np.random.Generator, suffix_first: bool = False
) -> list[int]:
    """The ids of a text rearranged so that its middle comes last (Bavarian et al. 2022, section 3).

    The text is cut at two places drawn evenly between its characters. Prefix, suffix, middle:

        <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle

    or, with `suffix_first`, the variant whose prefix and middle follow each other (section 3.3):

        <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle
    """
    start, end = sorted(int(place) for place in rng.integers(0, len(text) + 1, 2))
    before, middle, after = (tokenizer.encode(part) for part in (text[:start], text[start:end], text[end:]))
    prefix_id, middle_id, suffix_id = infilling_ids(tokenizer)
    if suffix_first:
        return [prefix_id, suffix_id, *after, middle_id, *before, *middle]
    return [prefix_id, *before, suffix_id, *after, middle_id, *middle]


def without_infilling(ids: list[int], tokenizer: AnyTokenizer) -> str:
    """The text that `with_infilling` rearranged; ids without infilling tokens are plain text.

    Raises:
        DataError: the infilling tokens are not one of each, in the order that `with_infilling` writes.
    """
    marks = infilling_ids(tokenizer)
    places = [place for place, id in enumerate(ids) if id in marks]
    if not places:
        return tokenizer.decode(ids)
    prefix_id, middle_id, suffix_id = marks
    if [ids[place] for place in places] != [prefix_id, suffix_id, middle_id] or places[0]:
        raise DataError("the infilling tokens are not one prefix, one suffix and one middle, in this order")
    before, after, middle = ids[1 : places[1]], ids[places[1] + 1 : places[2]], ids[places[2] + 1 :]
    return tokenizer.decode([*before, *middle]) + tokenizer.decode(after)


def _added_to_sentencepiece(tokenizer: Tokenizer) -> Tokenizer:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    known = {piece.piece: piece for piece in model.pieces}
    for run in RUNS:
        piece = known.get(run.replace(" ", SPACE_MARK)) or model.pieces.add(
            piece=run.replace(" ", SPACE_MARK), score=0.0
        )
        piece.type = kinds.USER_DEFINED
    for name in INFILLING:
        _refuse_second(name, known)
        model.pieces.add(piece=name, score=0.0, type=kinds.CONTROL)
    return Tokenizer(model.SerializeToString(deterministic=True))


def _added_to_byte_level(tokenizer: ByteLevelTokenizer) -> ByteLevelTokenizer:
    description = json.loads(tokenizer.content)
    entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = description.setdefault("added_tokens", [])
    known = {token["content"] for token in added} | set(description["model"]["vocab"])
    for piece in [run for run in RUNS if run not in known] + list(INFILLING):
        _refuse_second(piece, known)
        id = tokenizer.vocab_size + sum(token["id"] >= tokenizer.vocab_size for token in added)
        added.append(entry | {"id": id, "content": piece, "special": piece in INFILLING})
    return ByteLevelTokenizer(json.dumps(description, ensure_ascii=False).encode())


def _refuse_second(piece, known):
    if piece in known:
        raise DataError(f"the tokenizer has the piece {piece} already: add tokens for code once")
