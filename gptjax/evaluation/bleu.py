"""BLEU as sacrebleu computes it."""

from typing import Literal

from gptjax.errors import require

BleuTokenizer = Literal["13a", "zh", "char", "none"]


def corpus_bleu(translations: list[str], references: list[str], tokenizer: BleuTokenizer) -> float:
    """BLEU of a corpus with one reference each, 0 to 100 (Papineni et al. 2002; Post 2018, arXiv 1804.08771).

    Args:
        translations, references: one text each per sentence.
        tokenizer: sacrebleu's name for how both are cut into words: "13a" for European languages, "zh" splits
            Chinese by characters.

    Raises:
        MissingPackage: sacrebleu is not installed.
        ValueError: the two are not of one length.
    """
    require("sacrebleu")
    import sacrebleu

    if len(translations) != len(references):
        raise ValueError(f"{len(translations)} translations stand against {len(references)} references")
    return sacrebleu.corpus_bleu(translations, [references], tokenize=tokenizer).score
