"""Out of memory, in the words of whichever library ran out first; and what a user may lower.

The kernel may end a decoding process for it. Torch says so from a signal handler, as a RuntimeError anywhere in the
training step, and not where the batch is awaited.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

# of PyTorch's CPU allocator, of CUDA, of C++, of ONNX Runtime, of OpenVINO and of Ray, in lower case
_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "failed to allocate memory",
    "not enough memory",
    "unable to allocate",
)
_DECODER = "DataLoader worker"  # as torch begins what it says of a lost one
# the stage's name, or how it begins -> keys of the recipe that make it smaller
_LOWER = {
    "data": "data.memory_limit_mb or data.workers",
    "teacher": "teacher.train.batch_size",
    "table": "distill.batch_size",
    "distill": "distill.batch_size",
    "control": "distill.batch_size",
    "export": "export.batch",
    "quantize": "quantize.samples",
    "evaluate": "data.memory_limit_mb or export.batch",
    "profile": "profile.batch",
}
ANY = "a batch size, the size of the images or data.memory_limit_mb"


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory that ran out is behind `error`, also where a library wrapped it in an exception of its own."""
    for each in _behind(error):
        if isinstance(each, MemoryError) or (isinstance(each, OSError) and each.errno == errno.ENOMEM):
            return True
        text = str(each).lower()
        if any(words in text for words in _WORDS):
            return True
    return False


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what caused it, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def told(error: BaseException, stage: str) -> str:
    """What to do where memory, or a decoding process, is behind `error` in a stage; empty for anything else."""
    if out_of_memory(error):
        return advice(stage)
    for each in _behind(error):
        if isinstance(each, RuntimeError) and str(each).startswith(_DECODER):
            reason = str(each).partition("\n")[0].rstrip(". ")
            return f"a decoding process ended early ({reason}); give it more memory or set data.workers lower"
    return ""


def advice(stage: str = "") -> str:
    """`out of memory; lower ..., or close other programs`, with the keys that `stage` obeys."""
    return f"out of memory; lower {_LOWER.get(stage.partition('-')[0], ANY)}, or close other programs"
