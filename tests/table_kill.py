"""Builds a table in the folder given and kills itself in the middle, as a crash would."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.teacher_table import build
from tests.table_parts import REPLAY, Pixels, filled, key

build.SAVE_S = -1.0


class Deadly(Pixels):
    def __call__(self, view):
        if self.calls == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(view)


if __name__ == "__main__":
    filled(sys.argv[1], key(REPLAY), slices=20, teacher=Deadly())
