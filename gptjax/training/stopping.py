"""How a run leaves: told by SIGTERM, with a checkpoint; or after an error nobody foresaw."""

import os
import signal
import sys
import traceback

import jax

from gptjax.errors import INTERNAL, RESUBMIT


class StopSignal:
    """Notes SIGTERM so that the loop can save first; a second one leaves at once.

    Of several processes one may be told. JAX's coordination service has its own handler then, which is left
    in place: it passes the notice on and picks the next step that none has reached yet. From that step on,
    while the processes save, a second signal leaves at once.
    """

    def __init__(self):
        self._received = False
        self._previous = None

    def __enter__(self):
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_):
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def asked(self, step: int) -> bool:
        """Says whether to stop after this step; with several processes, call it once at every step."""
        if jax.process_count() == 1:
            return self._received
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            self._received = True
            signal.signal(signal.SIGTERM, self._handle)
        return self._received

    def _handle(self, *_):
        if self._received:
            os._exit(RESUBMIT)
        self._received = True


def leave_after(error: Exception) -> int:
    """Prints an unforeseen error and returns the exit code; of several processes it leaves at once.

    There the end of the interpreter would wait for the others, of which one may be dead: then a collective
    fails here, and the code says to run the same command again.
    """
    traceback.print_exception(error)
    if jax.process_count() == 1:
        return INTERNAL
    collective = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(RESUBMIT if collective else INTERNAL)
