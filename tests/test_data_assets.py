"""The packed data: small, with its licences, and made as the build script says."""

import json
from importlib import resources

from gptjax.assets.build import SOURCES, ratings, shakespeare

FOLDER = resources.files("gptjax.assets")


def test_assets_are_below_five_megabytes_and_each_has_its_licence():
    files = [f for f in FOLDER.iterdir() if f.is_file() and not f.name.endswith(".py")]
    assert sum(len(f.read_bytes()) for f in files) < 5_000_000
    licences = (FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    for file in files:
        assert file.name == "LICENSES.md" or f"## {file.name}" in licences
    assert "Copyright (c) 2016 C.J. Hutto" in licences and "THE SOFTWARE IS PROVIDED" in licences


def test_build_joins_works_and_votes(tmp_path):
    (tmp_path / "b_gut.txt").write_text("Second\n")
    (tmp_path / "a_gut.txt").write_text("First\n")
    (tmp_path / "a_gut_f.txt").write_text("folio, left out")
    assert shakespeare(tmp_path) == "a\nFirst\n\x1eb\nSecond\n"
    for stem in SOURCES.values():
        (tmp_path / f"{stem}_GroundTruth.txt").write_text("1\t0.5\ttext &amp; more \n2\t1\tother\n")
        votes = "\ufeff1\t0.5\t0.5\t[0, 1]\n2\t1\t0\t[1, 1]\n"
        (tmp_path / f"{stem}_anonDataRatings.txt").write_text(votes, encoding="utf-8")
    rows = [json.loads(line) for line in ratings(tmp_path).split("\n")[:-1]]
    assert rows[0] == {"id": "1", "source": "tweets", "text": "text &amp; more", "votes": [0, 1]}
    assert len(rows) == 2 * len(SOURCES)
