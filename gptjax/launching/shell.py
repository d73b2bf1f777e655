"""Runs the programs of a platform, or prints them."""

import shlex
import subprocess
import time
from pathlib import Path

from gptjax.errors import UserError


class LaunchError(UserError):
    """A launch that cannot go on, or was asked for in words that make no sense."""

    exit_code = 2


class Shell:
    """Runs commands one after the other; with `dry_run` prints each as it would be typed, and runs none."""

    def __init__(self, dry_run: bool = False):
        self.dry_run = dry_run

    def run(self, *words: str | Path, **environment: str) -> int:
        """Runs a command whose output is the user's; returns its exit code."""
        return self._call(words, environment, capture=False).returncode

    def must(self, *words: str | Path, **environment: str) -> None:
        """Runs a command that has to succeed.

        Raises:
            LaunchError: it did not.
        """
        code = self.run(*words, **environment)
        if code:
            raise LaunchError(f"{_short(words)} ended with exit code {code}: see what it printed above")

    def ask(self, *words: str | Path) -> subprocess.CompletedProcess:
        """Runs a command whose output is for us, `stdout` and `stderr`; under `dry_run` both are empty."""
        return self._call(words, {}, capture=True)

    def write(self, path: Path, text: str) -> None:
        """Writes a file that a later command reads; under `dry_run` prints it."""
        if self.dry_run:
            print(f"# {path}:")
            print("".join(f"#   {line}\n" for line in text.splitlines()), end="")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def wait(self, seconds: float) -> None:
        """Sleeps; under `dry_run` not."""
        if not self.dry_run:
            time.sleep(seconds)

    def _call(self, words, environment, capture: bool) -> subprocess.CompletedProcess:
        typed = [str(word) for word in words]
        if self.dry_run:
            print(shlex.join([*(f"{name}={value}" for name, value in environment.items()), *typed]))
            return subprocess.CompletedProcess(typed, 0, "", "")
        if environment:
            typed = ["env", *(f"{name}={value}" for name, value in environment.items()), *typed]
        try:
            return subprocess.run(typed, capture_output=capture, text=True)
        except FileNotFoundError as error:
            raise LaunchError(f"{error.filename} was not found: install it, or put it on PATH") from error


def _short(words) -> str:
    return shlex.join([str(word) for word in words[:5]]) + (" ..." if len(words) > 5 else "")
