"""How a run leaves: told by SIGTERM, with a checkpoint; or after an error nobody foresaw."""

import ctypes
import errno
import itertools
import os
import signal
import sys
import traceback

import jax

from gptjax.errors import DISK, INTERNAL, RESUBMIT

_sigaction = ctypes.CDLL(None).sigaction
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int)
# The service agrees on one more than the highest number it has been asked about. Steps would pass it by: they
# begin anew in every stage, and go on from thousands after a resume.
_ASKED = itertools.count(1)


class StopSignal:
    """Notes SIGTERM so that the loop can save first; a second one to the same process leaves at once.

    Of several processes one may be told. JAX's coordination service has a handler of its own then, which is
    called as well: it passes the notice on and picks the next step that none has reached yet.
    """

    def __init__(self):
        self._told = self._agreed = False

    def __enter__(self):
        self._service = _handler_in_c() if jax.process_count() > 1 else None
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._previous)
        if self._service:
            _sigaction(signal.SIGTERM, self._service, None)

    def asked(self) -> bool:
        """Says whether to stop after this step; every one of several processes calls it once a step."""
        if jax.process_count() == 1:
            return self._told
        from jax.experimental import multihost_utils

        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(next(_ASKED))
        return self._agreed

    def _handle(self, number, _):
        if self._told:
            os._exit(RESUBMIT)
        self._told = True
        if self._service:
            _FUNCTION.from_buffer(self._service)(number)


def _handler_in_c() -> ctypes.Array:
    """C's `struct sigaction` of SIGTERM, whose first member is the handler; Python knows only its own."""
    found = ctypes.create_string_buffer(256)
    _sigaction(signal.SIGTERM, None, found)
    return found


def leave_after(error: Exception) -> int:
    """Prints an unforeseen error and returns the exit code; of several processes it leaves at once.

    There the end of the interpreter would wait for the others, of which one may be dead: then a collective
    fails here, and the code says to run the same command again.
    """
    traceback.print_exception(error)
    code = INTERNAL
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        code = DISK
        print("error: the disk is full: make room there and run the same command again", file=sys.stderr)
    if jax.process_count() == 1:
        return code
    collective = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(RESUBMIT if collective else code)
