"""Launches on platforms that are not here: the words programs get, and what is made of their answers."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptjax.launching import slurm, tpu
from gptjax.launching.__main__ import main
from gptjax.launching.environments import ENVIRONMENTS
from gptjax.launching.outcome import exit_code, outcome

ROOT = Path(__file__).parent.parent
# Stands for launch.sh in the tree that is shipped: says what it was started with, and becomes the command.
DOOR = """#!/bin/bash
cd "$(dirname "${BASH_SOURCE[0]}")"
[[ $1 == local && $2 == -- ]] || exit 9
echo "${ACCELERATOR:-} at ${GPTJAX_REVISION:-}, GPTJAX_DISTRIBUTED=${GPTJAX_DISTRIBUTED:-}"
exec "${@:3}"
"""
# Stands for a run: how it ends is a list of exit codes, one for each of its attempts on this host.
RUN = """host=${HOST:-$SLURM_PROCID}
attempt=$(($(cat "runs/attempts-$host" 2>/dev/null || echo 0) + 1))
echo $attempt >"runs/attempts-$host"
echo "host $host works, attempt $attempt"
word=$(cut -d' ' -f$attempt <<<"$1")
case $word in
wait) trap 'echo saved; exit 75' TERM; echo ready; for _ in {1..400}; do sleep 0.05; done ;;
preempt) echo PREEMPTED >"$FAKE_CLOUD/state"; exit 137 ;;
*) exit "$word" ;;
esac
"""
TPU = ("tpu", "--name", "demo", "--type", "v5litepod-8", "--zone", "z1", "--bucket", "mine")


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A checkout with a commit, fake programs on PATH, and what they were called with."""
    checkout, fake = tmp_path / "checkout", tmp_path / "bin"
    program(checkout / "launch.sh", DOOR)
    (checkout / "run.sh").write_text(RUN)
    (checkout / ".gitignore").write_text(".launch/\nruns/\n.venv/\n")
    (checkout / "gptjax/launching").mkdir(parents=True)
    shutil.copy(ROOT / "gptjax/launching/worker.sh", checkout / "gptjax/launching")
    monkeypatch.chdir(checkout)
    git("init", "--quiet")
    commit("a commit")
    slurm_programs = dict.fromkeys(("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol"), "slurm")
    for name, stand_in in {"gcloud": "gcloud", "xpk": "xpk", "kubectl": "xpk", **slurm_programs}.items():
        text = (ROOT / f"tests/fake_{stand_in}.py").read_text()
        program(fake / name, f"#!{sys.executable} -SI\n{text}")
    program(
        fake / "gcsfuse",
        '#!/bin/bash\nrmdir "$3"; mkdir -p "$FAKE_CLOUD/buckets/$2"; ln -s "$FAKE_CLOUD/buckets/$2" "$3"',
    )
    program(fake / "mountpoint", "#!/bin/bash\n[[ -L $2 ]]")
    program(fake / "fusermount", '#!/bin/bash\nrm "$2"; mkdir "$2"')
    (tmp_path / "cloud").mkdir()
    monkeypatch.setenv("FAKE_CLOUD", str(tmp_path / "cloud"))
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setattr(tpu, "POLL", 0.05)
    monkeypatch.setattr(slurm, "POLL", 0.05)
    return tmp_path / "cloud"


def git(*words):
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *author, *words], check=True, capture_output=True, text=True).stdout.strip()


def commit(message):
    git("add", "--all")
    git("commit", "--quiet", "-m", message)


def calls(cloud):
    return [json.loads(line) for line in (cloud / "calls.jsonl").read_text().splitlines()]


def verbs(cloud):
    return [words[3] for words in calls(cloud)]


def launched(verb, cloud, *words):
    """The launcher as a process of its own, whose polls are short."""
    short = "from gptjax.launching import slurm, tpu; slurm.POLL = tpu.POLL = 0.05; "
    run = f"{short}import sys; from gptjax.launching.__main__ import main; sys.exit(main({[verb, *words]!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", run],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until(true, seconds=20):
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "it did not come true"
        time.sleep(0.02)


def test_the_codes_of_several_workers_are_one():
    assert outcome([0, 0]) == 0
    assert outcome([0, 75]) == outcome([75, 137]) == outcome([134, 0]) == 75
    assert outcome([134, 64, 75]) == 64 and outcome([1, 0]) == 1
    assert exit_code(-9) == 137 and exit_code(75) == 75


@pytest.mark.parametrize("accelerator", ["cpu", "cuda12", "cuda13", "tpu"])
def test_a_table_is_what_a_shell_can_export(accelerator):
    done = subprocess.run(
        [sys.executable, ROOT / "gptjax/launching/environments.py", accelerator],
        capture_output=True,
        text=True,
    )
    assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == ENVIRONMENTS[accelerator]
    assert all(
        "=" in flag and flag.startswith("--") for flag in ENVIRONMENTS["tpu"]["LIBTPU_INIT_ARGS"].split()
    )


def test_a_slice_is_made_given_the_tree_and_followed(cloud, capfd):
    assert main([*TPU, "--project", "p1", "--", "bash", "run.sh", "0 0"]) == 0
    shown = capfd.readouterr().out
    revision = git("rev-parse", "--short=12", "HEAD")
    assert "LIBTPU_INIT_ARGS=--xla" in shown
    assert f"tpu at {revision}, GPTJAX_DISTRIBUTED=1\nhost 0 works, attempt 1" in shown
    assert "host 1" not in shown and "stays and costs money" in shown
    place = ["--zone", "z1", "--project", "p1"]
    tail = ["--accelerator-type", "v5litepod-8", "--version", "v2-alpha-tpuv5-lite", *place]
    described, created, *_ = calls(cloud)
    assert described == ["compute", "tpus", "tpu-vm", "describe", "demo", "--format", "value(state)", *place]
    assert created == ["compute", "tpus", "tpu-vm", "create", "demo", *tail]
    assert verbs(cloud) == ["describe", "create", "describe", "ssh", "scp", "ssh", "ssh", "ssh", "ssh"]
    assert all(words[-4:] == place for words in calls(cloud))
    for host in (0, 1):
        tree = cloud / f"hosts/{host}/launches/demo/tree"
        assert (tree / "run.sh").read_text() == RUN and not (tree / ".git").exists()
        assert (cloud / f"buckets/mine/attempts-{host}").read_text() == "1\n"


def test_75_starts_the_same_slice_again_with_what_the_first_attempt_left(cloud, capfd):
    assert main([*TPU, "--", "bash", "run.sh", "75 0"]) == 0
    assert verbs(cloud).count("create") == 1 and verbs(cloud).count("scp") == 2
    assert "demo is started again, attempt 2" in capfd.readouterr().out
    assert (cloud / "buckets/mine/attempts-1").read_text() == "2\n"


def test_retries_end(cloud):
    assert main([*TPU, "--retries", "1", "--", "bash", "run.sh", "75 75 0"]) == 75
    assert (cloud / "buckets/mine/attempts-0").read_text() == "2\n"


def test_a_preempted_slice_is_made_anew_and_the_run_goes_on(cloud, capfd):
    assert main([*TPU, "--spot", "--", "bash", "run.sh", "preempt 0"]) == 0
    assert "the slice demo is PREEMPTED and is made anew" in capfd.readouterr().out
    assert [verb for verb in verbs(cloud) if verb in ("create", "delete")] == ["create", "delete", "create"]
    assert all("--spot" in words for words in calls(cloud) if words[3] == "create")
    assert (cloud / "buckets/mine/attempts-0").read_text() == "2\n"


def test_an_error_that_asks_for_a_person_ends_the_launch(cloud):
    assert main([*TPU, "--delete", "--", "bash", "run.sh", "64"]) == 64
    assert (cloud / "buckets/mine/attempts-0").read_text() == "1\n"
    assert verbs(cloud)[-1] == "delete" and not (cloud / "state").exists()


def test_a_slice_that_is_there_is_used_and_queued_ones_are_asked_for(cloud):
    assert main([*TPU, "--queued", "--version", "v9", "--", "bash", "run.sh", "0"]) == 0
    create = calls(cloud)[1]
    assert create[2:5] == ["queued-resources", "create", "demo"] and create[5:7] == ["--node-id", "demo"]
    assert create[create.index("--runtime-version") + 1] == "v9"
    assert main([*TPU, "--", "bash", "run.sh", "0 0"]) == 0
    assert verbs(cloud).count("create") == 1


def test_a_launch_is_looked_at_and_stopped_from_elsewhere(cloud, capfd):
    running = launched(*TPU[:1], cloud, *TPU[1:], "--", "bash", "run.sh", "wait wait")
    log = cloud / "hosts/1/launches/demo/worker.log"
    wait_until(lambda: log.exists() and "ready" in log.read_text())
    assert main([*TPU, "--", "bash", "run.sh", "0"]) == 2
    assert "demo runs already: stop it with ./launch.sh stop demo" in capfd.readouterr().err
    assert main(["status", "demo"]) == 0
    shown = capfd.readouterr().out
    assert "the slice is READY" in shown and shown.count("running") == 2
    assert main(["stop", "demo"]) == 0
    assert running.wait(20) == 75, "a stopped run is not started again"
    assert "saved" in running.stdout.read()
    assert (cloud / "buckets/mine/attempts-0").read_text() == "1\n"
    main(["status", "demo"])
    assert capfd.readouterr().out.count("ended 75 stopped") == 2
    main(["logs", "demo"])
    assert "saved" in capfd.readouterr().out
    main(["stop", "demo", "--delete"])
    assert verbs(cloud)[-1] == "delete"


def test_an_installation_that_fails_is_not_tried_for_ever(cloud, capfd):
    program(Path("launch.sh"), "#!/bin/bash\necho no such package >&2\nexit 1\n")
    commit("broken")
    assert main([*TPU, "--", "bash", "run.sh", "0"]) == 2
    shown = capfd.readouterr().err
    assert "no such package" in shown and "error: a command on the hosts of demo failed" in shown
    assert main([*TPU, "--delete", "--", "bash", "run.sh", "0"]) == 2
    assert "the slice demo stays and costs money" in capfd.readouterr().out and "delete" not in verbs(cloud)


def test_a_launch_that_is_stopped_and_deleted_is_not_made_anew(cloud):
    running = launched(*TPU[:1], cloud, *TPU[1:], "--", "bash", "run.sh", "wait wait")
    log = cloud / "hosts/1/launches/demo/worker.log"
    wait_until(lambda: log.exists() and "ready" in log.read_text())
    assert main(["stop", "demo", "--delete"]) == 0
    assert running.wait(20) == 75
    assert (
        verbs(cloud).count("create") == verbs(cloud).count("delete") == 1 and not (cloud / "state").exists()
    )
    assert main([*TPU, "--", "bash", "run.sh", "0 0"]) == 0, "the next launch has forgotten it"


def test_only_a_commit_is_shipped_or_what_is_beside_it_recorded(cloud, capfd):
    Path("run.sh").write_text(RUN + "# changed\n")
    Path("new.txt").write_text("new\n")
    assert main([*TPU, "--", "bash", "run.sh", "0"]) == 2
    assert "no commit holds these changes of the tree (run.sh, new.txt)" in capfd.readouterr().err
    assert not (cloud / "calls.jsonl").exists()
    assert main([*TPU, "--dirty", "--", "bash", "run.sh", "0"]) == 0
    revision = git("rev-parse", "--short=12", "HEAD")
    assert f"tpu at {revision}+changes, " in capfd.readouterr().out
    tree = cloud / "hosts/0/launches/demo/tree"
    assert (tree / "run.sh").read_text().endswith("# changed\n") and (tree / "new.txt").exists()
    patch = Path(".launch/demo/changes.patch").read_text()
    assert "+# changed" in patch and "+new" in patch
    assert git("status", "--porcelain").splitlines() == ["M run.sh", "?? new.txt"], "the index is left alone"


def test_what_the_new_tree_lacks_is_gone_on_the_hosts_and_the_environment_stays(cloud):
    Path("old.txt").write_text("")
    commit("with old.txt")
    assert main([*TPU, "--", "bash", "run.sh", "0"]) == 0
    tree = cloud / "hosts/0/launches/demo/tree"
    (tree / ".venv").mkdir()
    git("rm", "--quiet", "old.txt")
    commit("without")
    assert main([*TPU, "--", "bash", "run.sh", "0 0"]) == 0
    assert not (tree / "old.txt").exists() and (tree / ".venv").exists()


SLURM = ("slurm", "--name", "demo", "--nodes", "1", "--gpus", "2", "--accelerator", "cuda12")


def test_a_job_is_submitted_followed_and_queued_again_after_75(cloud, capfd):
    options = "--partition=gpu --time=4:00:00"
    assert main([*SLURM, "--slurm", options, "--", "bash", "run.sh", "75 0"]) == 0
    shown = capfd.readouterr().out
    assert "demo is job 7" in shown and "XLA_FLAGS=--xla_gpu" in shown
    assert "host 0 works, attempt 1" in shown and "host 0 works, attempt 2" in shown
    assert "host 1" not in shown and "job 7 ended as COMPLETED with exit code 0" in shown
    head = Path(".launch/demo/job.sh").read_text().splitlines()
    assert (
        f"#SBATCH {options}" in head and "#SBATCH --gpus-per-node=2" in head and "#SBATCH --requeue" in head
    )
    assert "#SBATCH --ntasks-per-node=2" in head and "#SBATCH --signal=TERM@300" in head
    assert "GPTJAX_DISTRIBUTED=\n" in Path(".launch/demo/worker-1.log").read_text(), "SLURM is detected"
    assert ["scontrol", "requeue", "7"] in calls(cloud)
    assert Path("runs/attempts-1").read_text() == "2\n", "runs/ is the one of the checkout"


def test_a_job_whose_task_asks_for_a_person_ends_with_its_code(cloud, capfd):
    assert main([*SLURM, "--", "bash", "-c", "exit $((64 + 70 * SLURM_PROCID))"]) == 64
    assert not [words for words in calls(cloud) if words[0] == "scontrol"]


def test_a_queue_that_is_too_busy_to_answer_does_not_end_a_job(cloud, capfd):
    running = launched(*SLURM[:1], cloud, *SLURM[1:], "--", "bash", "run.sh", "wait")
    log = Path(".launch/demo/worker-1.log")
    wait_until(lambda: log.exists() and "ready" in log.read_text())
    (cloud / "busy").touch()
    wait_until(lambda: not (cloud / "busy").exists())
    assert running.poll() is None
    assert main(["stop", "demo"]) == 0
    assert running.wait(20) == 75
    assert "launch: job 7 is RUNNING" in running.stdout.read()


def test_a_lost_task_queues_the_job_again_as_often_as_asked(cloud):
    assert main([*SLURM, "--retries", "2", "--", "bash", "run.sh", "137 137 137 0"]) == 137
    assert Path("runs/attempts-0").read_text() == "3\n"


def test_a_job_is_looked_at_and_stopped(cloud, capfd):
    running = launched(*SLURM[:1], cloud, *SLURM[1:], "--", "bash", "run.sh", "wait wait")
    log = Path(".launch/demo/worker-1.log")
    wait_until(lambda: log.exists() and "ready" in log.read_text())
    assert main(["status", "demo"]) == 0 and "demo: job 7 is RUNNING" in capfd.readouterr().out
    assert main(["stop", "demo"]) == 0
    assert ["scancel", "--signal=TERM", "7"] in calls(cloud)
    assert running.wait(20) == 75 and "saved" in running.stdout.read()
    assert Path("runs/attempts-0").read_text() == "1\n"


def test_a_refused_job_is_said_so(cloud, capfd):
    program(
        Path(os.environ["PATH"].split(":")[0]) / "sbatch", "#!/bin/bash\necho invalid partition >&2; exit 1"
    )
    assert main([*SLURM, "--", "true"]) == 2
    assert "sbatch refused .launch/demo/job.sh: invalid partition" in capfd.readouterr().err


XPK = ("xpk", "--name", "demo", "--cluster", "c1", "--zone", "z1", "--type", "v5litepod-256", "--slices", "2")


def test_a_workload_is_created_followed_and_waited_for(cloud):
    runs = cloud / "all runs"
    runs.mkdir()
    assert main([*XPK, "--runs", str(runs), "--", "bash", "run.sh", "0", "a b.py"]) == 0
    create, follow, wait = calls(cloud)
    where = ["--cluster=c1", "--zone=z1"]
    assert create[:3] == ["xpk", "workload", "create"] and create[3:5] == where
    revision = git("rev-parse", "--short=12", "HEAD")
    run = f"env ACCELERATOR=tpu GPTJAX_REVISION={revision} GPTJAX_DISTRIBUTED=1 ./launch.sh local"
    assert create[5:] == [
        "--workload=demo",
        "--tpu-type=v5litepod-256",
        "--num-slices=2",
        "--base-docker-image=python:3.12",
        "--script-dir=.launch/demo/tree",
        "--max-restarts=50",
        "--restart-on-exit-codes=75",
        "--termination-grace-period-seconds=300",
        f"--command=ln -sfn '{runs}' runs && exec {run} -- bash run.sh 0 'a b.py'",
    ]
    assert follow[:3] == ["kubectl", "logs", "--follow"] and "jobset-name=demo" in follow[-1]
    assert wait == ["xpk", "workload", "list", *where, "--wait-for-job-completion", "demo"]
    assert Path(".launch/demo/tree/run.sh").exists()
    main(["status", "demo"])
    main(["stop", "demo"])
    assert calls(cloud)[-2:] == [
        ["xpk", "workload", "list", *where, "--filter-by-job=demo"],
        ["xpk", "workload", "delete", *where, "--workload=demo", "--force"],
    ]


def test_the_command_of_a_workload_starts_in_the_image_and_again_after_75(cloud, capfd):
    (cloud / "runs").mkdir()
    words = [*XPK, "--runs", str(cloud / "runs"), "--", "bash", "run.sh"]
    assert main([*words, "75 75 0"]) == 0
    shown = capfd.readouterr().out
    assert f"tpu at {git('rev-parse', '--short=12', 'HEAD')}, GPTJAX_DISTRIBUTED=1" in shown
    assert shown.index("host 0 works, attempt 1") < shown.index("host 0 works, attempt 3")
    assert (cloud / "runs/attempts-0").read_text() == "3\n", "runs/ is the cluster's storage"


def test_a_workload_that_fails_is_not_started_again(cloud):
    (cloud / "runs").mkdir()
    assert main([*XPK, "--runs", str(cloud / "runs"), "--", "bash", "run.sh", "64 0"]) != 0
    assert (cloud / "runs/attempts-0").read_text() == "1\n" and (cloud / "code").read_text() == "64"


@pytest.mark.parametrize(
    ("words", "programs"),
    [
        (TPU, ["git", "gcloud"]),
        (SLURM, ["git", "mkdir", "sbatch", "squeue", "sacct"]),
        (("xpk", "--cluster", "c", "--type", "v5p-8", "--runs", "/r"), ["git", "xpk", "kubectl"]),
        (("local", "--processes", "2", "--devices", "4"), ["JAX_COORDINATOR_ADDRESS=127.0.0.1:1234"]),
    ],
)
def test_a_dry_run_prints_every_command_and_does_nothing(cloud, capfd, words, programs):
    assert main([*words, "--dry-run", "--", "bash", "run.sh", "a b"]) == 0
    shown = capfd.readouterr().out
    typed = [
        shlex.split(line)[0]
        for line in shown.splitlines()
        if not line.startswith(("#", " ", "env", "launch"))
    ]
    assert set(programs) <= set(typed)
    assert all(word in shown for word in ("bash run.sh", "a b"))
    assert not (cloud / "calls.jsonl").exists() and not Path(".launch").exists() and not Path("runs").exists()


def test_a_dry_run_of_a_changed_tree_says_what_a_launch_would(cloud, capfd):
    Path("new.txt").write_text("")
    assert main([*TPU, "--dry-run", "--", "true"]) == 0
    assert "# would be refused: no commit holds these changes of the tree (new.txt)" in capfd.readouterr().out
    assert main([*TPU, "--dry-run", "--dirty", "--", "true"]) == 0
    assert "git add --all" in capfd.readouterr().out and not git("diff", "--cached", "--name-only")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*TPU,), "write: ./launch.sh tpu [OPTIONS] -- COMMAND ..."),
        ((*TPU, "--"), "write: ./launch.sh tpu [OPTIONS] -- COMMAND ..."),
        ((*TPU, "--zonn", "x", "--", "true"), "unrecognized arguments: --zonn x; see ./launch.sh"),
        (("tpu", "--", "true"), "the following arguments are required: --type, --zone, --bucket"),
        ((*TPU, "--name", "My_Run", "--", "true"), "My_Run is not a name everywhere"),
        ((*TPU, "--type", "v9-8", "--", "true"), "--type v9-8 begins with none of v4, v5litepod, v5p, v6e"),
        (("local", "--processes", "0", "--", "true"), "argument --processes: 0 is not a whole number from 1"),
        (("local", "--retries", "-1", "--", "true"), "argument --retries: "),
        (("local", "--", "no-such-program"), "no-such-program cannot be run: No such file or directory"),
        (("status", "other"), "there is no launch other: nothing was launched from this folder yet"),
        (("stop", "a b"), "a b is not a name everywhere"),
    ],
)
def test_a_mistake_gets_one_sentence(cloud, capfd, words, sentence):
    assert main([*words]) == 2
    shown = capfd.readouterr().err
    assert shown.startswith(f"error: {sentence}") and shown.count("\n") == 1


def test_a_program_that_is_missing_is_named(cloud, capfd, monkeypatch):
    git_alone = cloud / "bin"
    git_alone.mkdir()
    for name in ("git", "env"):
        (git_alone / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(git_alone))
    assert main([*TPU, "--", "true"]) == 2
    assert "error: gcloud was not found: install it, or put it on PATH" in capfd.readouterr().err


def test_a_folder_without_git_cannot_be_shipped(cloud, capfd, tmp_path, monkeypatch):
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")
    assert main([*TPU, "--", "true"]) == 2
    assert "launch from a git checkout" in capfd.readouterr().err
