"""`torchrun --nproc-per-node N -m pipeline COMMAND`: rank 0 runs the command, the others help where it trains.

torchrun itself ends with 1 when any process ends with another code than 0, that of a refused release included.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from typing import TYPE_CHECKING

from pipeline.errors import EXIT_COULD_NOT_RUN, EXIT_INTERRUPTED, UserError
from pipeline.training.teamwork import LOST, RESUME, follow, reason

if TYPE_CHECKING:
    from pipeline.training.distributed import Ranks

BETTER_S = 1.0  # for who knows more about why all of them end


def main() -> None:
    """What each of the processes does; exits with the code of the command on rank 0."""
    code = EXIT_COULD_NOT_RUN
    try:
        # Of DDP and gloo, about speed and sockets: of every process, and nothing that the user could mend.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        from pipeline.training import distributed

        ranks = distributed.join()
    except (UserError, RuntimeError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            say(f"error: torchrun: the processes did not meet: {reason(error)}")
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    else:
        when_terminated(ranks)
        code = lead_all(ranks) if ranks.leads else follow_to_the_end(ranks)
        if not ranks.apart and code != EXIT_COULD_NOT_RUN:
            with contextlib.suppress(RuntimeError):
                distributed.leave()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # connections to a lost process would keep the interpreter from ending


def lead_all(ranks: Ranks) -> int:
    """Run the command line and send the others home. Returns its exit code."""
    from pipeline.cli.main import main as command

    code = 0
    try:
        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_COULD_NOT_RUN
    if not ranks.apart:
        with contextlib.suppress(RuntimeError):
            ranks.share(None)
    return code


def follow_to_the_end(ranks: Ranks) -> int:
    from pipeline.chain import stages

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # rank 0 has the word, and notices when the others are gone
    try:
        follow(ranks, stages)
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exception(error)
        if ranks.noted(LOST, within_s=0.0) is None:  # else rank 0 finds the reason there
            time.sleep(BETTER_S)
            if ranks.last_word():
                say(f"error: {error}")
        return EXIT_COULD_NOT_RUN
    return 0


def when_terminated(ranks: Ranks) -> None:
    """torchrun ends all processes by SIGTERM when one of them has died: then one of them says so.

    A thread, because the main one may be inside of a library that waits for the dead one and not for signals.
    """
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_as_usual)

    def watch() -> None:
        while signal.SIGTERM not in os.read(receiving, 1):
            pass
        time.sleep(BETTER_S)
        why = ranks.noted(LOST, within_s=0.0) or "another process ended early, or torchrun was stopped; see its output"
        if ranks.last_word():
            say(f"error: {why}; {RESUME}")
        os._exit(EXIT_COULD_NOT_RUN)

    threading.Thread(target=watch, daemon=True).start()


def _as_usual() -> None:
    """A decoding process is not one of ours: its signals are its own."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
