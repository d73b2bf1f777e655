"""Stands for `gcloud compute tpus`: a slice of two hosts, each of them a folder.

What runs on a host runs in its folder. In `$FAKE_CLOUD`: `calls.jsonl` (every call), `state` (of the slice,
absent where there is none), `hosts/0`, `hosts/1`, and `buckets`. A slice that is not READY cannot be reached,
as with ssh: exit code 255.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
STATE, HOSTS = CLOUD / "state", CLOUD / "hosts"
OPTIONS = ("--zone", "--project", "--format", "--command", "--accelerator-type", "--version", "--node-id")


def option(words, name, default=None):
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return following
        if word.startswith(name + "="):
            return word.split("=", 1)[1]
    return default


def positional(words):
    found, skip = [], False
    for word in words:
        if not skip and not word.startswith("--"):
            found.append(word)
        skip = word in (*OPTIONS, "--runtime-version")
    return found


def hosts(words):
    worker = option(words, "--worker", "0")
    return [0, 1] if worker == "all" else [int(worker)]


def ssh(words):
    code = 0
    for host in hosts(words):
        home = HOSTS / str(host)
        settings = os.environ | {"HOME": str(home), "HOST": str(host)}
        done = subprocess.run(["bash", "-c", option(words, "--command")], cwd=home, env=settings)
        code = code or done.returncode
    return code


def scp(words):
    *files, target = positional(words)
    for host in hosts(words):
        for file in files:
            shutil.copy(file, HOSTS / str(host) / target.split(":", 1)[1])
    return 0


def main(words):
    with (CLOUD / "calls.jsonl").open("a") as file:
        file.write(json.dumps(words) + "\n")
    verb, rest = words[3], words[4:]
    if verb == "create":
        for host in (0, 1):
            (HOSTS / str(host)).mkdir(parents=True)
        STATE.write_text("READY")
        return 0
    if not STATE.exists():
        print(f"ERROR: ({'.'.join(words[:4])}) NOT_FOUND: {rest[0]} was not found", file=sys.stderr)
        return 1
    if verb == "describe":
        print(STATE.read_text())
    elif verb == "delete":
        shutil.rmtree(HOSTS)
        STATE.unlink()
    elif STATE.read_text() != "READY":
        return 255
    else:
        return {"ssh": ssh, "scp": scp}[verb](rest)
    return 0


sys.exit(main(sys.argv[1:]))
