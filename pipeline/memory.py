"""Out of memory, in the words of whichever library ran out first; and what a user may lower."""

from __future__ import annotations

import errno

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
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        text = str(error).lower()
        if any(words in text for words in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def advice(stage: str = "") -> str:
    """`out of memory; lower ..., or close other programs`, with the keys that `stage` obeys."""
    return f"out of memory; lower {_LOWER.get(stage.partition('-')[0], ANY)}, or close other programs"
