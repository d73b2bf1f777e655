"""Stands for `xpk workload` and `kubectl logs`: a workload of one host, which is a folder.

As xpk's image does, the folder begins as a copy of the tree in `--script-dir`, and bash runs `--command`
there in a subshell; as the cluster does, it starts again after one of `--restart-on-exit-codes`. In
`$FAKE_CLOUD`: `calls.jsonl` (every call), `app` (the image), `pod.log` and `code` (the last exit code).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
# xpk's own lines around the command, without its pauses.
POD = "echo XPK Start; ({command}) & PID=$!; wait $PID; EXIT_CODE=$?; echo XPK End; exit $EXIT_CODE"


def create(options):
    shutil.copytree(options["script-dir"], CLOUD / "app", symlinks=True)
    pod = ["bash", "-c", POD.format(command=options["command"])]
    for _ in range(1 + int(options["max-restarts"])):
        with (CLOUD / "pod.log").open("a") as log:
            settings = {"cwd": CLOUD / "app", "env": os.environ | {"HOST": "0"}}
            settings = {"cwd": CLOUD / "app", "env": os.environ | {"HOST": "0"}}
            done = subprocess.run(pod, stdout=log, stderr=log, **settings)
        (CLOUD / "code").write_text(str(done.returncode))
        if str(done.returncode) not in options["restart-on-exit-codes"].split(","):
            break
    return 0


def main(name, words):
    with (CLOUD / "calls.jsonl").open("a") as file:
        file.write(json.dumps([name, *words]) + "\n")
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    if name == "kubectl":
        print((CLOUD / "pod.log").read_text(), end="")
    elif words[1] == "create":
        return create(options)
    elif "--wait-for-job-completion" in words:
        return 125 if int((CLOUD / "code").read_text()) else 0
    return 0


sys.exit(main(Path(sys.argv[0]).name, sys.argv[1:]))
