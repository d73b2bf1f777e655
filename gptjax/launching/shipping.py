"""Packs the source tree as git knows it: what runs elsewhere is a commit, or is recorded beside one."""

import subprocess

from gptjax.launching.record import Launch
from gptjax.launching.shell import LaunchError, Shell


def pack(launch: Launch, shell: Shell, dirty: bool) -> Launch:
    """Writes `code.tar.gz` into the launch's folder; returns the launch with its revision.

    Args:
        launch: whose folder gets the files.
        shell: runs git.
        dirty: pack the working tree with what no commit holds, ignored files left out, and write that as
            `changes.patch` beside it.

    Raises:
        LaunchError: this is no git checkout, or the tree has changes and `dirty` was not said.
    """
    revision, changes = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain").splitlines()
    if changes and not dirty:
        files = ", ".join(line[3:] for line in changes[:3]) + (", ..." if len(changes) > 3 else "")
        sentence = (
            f"no commit holds these changes of the tree ({files}): commit them, or ship them with --dirty"
        )
        if not shell.dry_run:
            raise LaunchError(sentence)
        print(f"# would be refused: {sentence}")
    archive, tree = launch.folder / "code.tar.gz", "HEAD"
    if not shell.dry_run:
        launch.folder.mkdir(parents=True, exist_ok=True)
    if changes and dirty:
        index = str(launch.folder.resolve() / "index")
        shell.must("git", "add", "--all", GIT_INDEX_FILE=index)
        tree = "TREE" if shell.dry_run else _git("write-tree", index=index)
        patch = launch.folder / "changes.patch"
        shell.must("git", "diff", "--binary", f"--output={patch}", "HEAD", tree)
        revision += "+changes"
    shell.must("git", "archive", "--format=tar.gz", "-o", archive, tree)
    return launch.save(shell, revision=revision)


def _git(*words: str, index: str | None = None) -> str:
    prefix = ["env", f"GIT_INDEX_FILE={index}"] if index else []
    try:
        answer = subprocess.run([*prefix, "git", *words], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise LaunchError("git was not found: install it, the tree is shipped with git archive") from error
    if answer.returncode:
        reason = answer.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise LaunchError(f"git {words[0]} failed here ({reason[0]}): launch from a git checkout")
    return answer.stdout.strip("\n")


def choice_of(accelerator: str) -> dict[str, str]:
    """What tells launch.sh which JAX to install."""
    return {} if accelerator == "cpu" else {"ACCELERATOR": accelerator}


def in_environment(launch: Launch, accelerator: str, **variables: str) -> list[str]:
    """The words that run the command inside the environment of a shipped tree, where launch.sh lies."""
    variables = choice_of(accelerator) | {"GPTJAX_REVISION": launch.revision} | variables
    settings = [f"{name}={value}" for name, value in variables.items()]
    return ["env", *settings, "./launch.sh", "local", "--", *launch.command]
