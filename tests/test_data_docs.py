"""The page about the data is true: its examples run and its figures are those of the readers."""

import pytest
from documentation import PAGES, run_examples

from gptjax.data import chat, corpora
from gptjax.data.chat import EXCLUDED, chatterbot, read_dialogues
from gptjax.data.corpora import read_documents
from gptjax.data.quality import KINDS, BadRows

PAGE = PAGES["docs/data.md"]


def test_the_examples_run_in_order(capsys):
    run_examples("docs/data.md", {})
    printed = capsys.readouterr().out
    assert "shakespeare/hamlet" in printed
    assert "scores=[-2.0, -1.0]" in printed
    assert "'Wherefore  art thou <|im_end|>?'" in printed
    assert "(4, 128)" in printed


@pytest.mark.parametrize("name", [*corpora.BUNDLED, *chat.BUNDLED])
def test_the_table_has_the_true_counts(name):
    read = read_dialogues if name in chat.BUNDLED else read_documents
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
    for split in ("train", "heldout"):
        count = len(read(name, split=split))
        if name in ("pydoc", "stdlib"):  # another Python has others
            assert count > 0
        else:
            assert f" {count:,} " in row


def test_the_page_names_every_kind_of_bad_row_and_counts_the_exclusions():
    sentence = " ".join(PAGE.split())
    assert all(kind in sentence for kind in KINDS)
    assert len(EXCLUDED) == 18 and "nine single questions, and eight of the Chinese ones" in sentence
    assert len({str(d) for _, d in chatterbot(BadRows())}) == 895 + 112
