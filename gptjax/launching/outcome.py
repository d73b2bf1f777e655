"""What the exit codes of several workers say together."""

from collections.abc import Iterable

from gptjax.errors import RESUBMIT

SIGNAL = 128  # the shell's exit code of a program that signal n ended is 128 + n


def exit_code(code: int) -> int:
    """A subprocess's return code as a shell gives it: -9 is 137."""
    return SIGNAL - code if code < 0 else code


def outcome(codes: Iterable[int]) -> int:
    """The exit code of a launch: 0, the first code that asks for a person, or 75 to start again.

    A worker that a signal ended (its host or its memory went, or it lost the others) says nothing against the
    run: the next attempt goes on from the last checkpoint. Starting again is bounded by `--retries`.
    """
    codes = list(codes)
    for code in codes:
        if code not in (0, RESUBMIT) and code < SIGNAL:
            return code
    return RESUBMIT if any(codes) else 0
