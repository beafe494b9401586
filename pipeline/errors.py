"""What can go wrong for a user, and the exit code of each.

Every message is one line: where, what was got, what to do. `exporters` and `profiles` know nothing of this module and
raise errors of their own (`ExportError`, `ProfileError`); the command line turns all of them into one line too.
"""

import contextlib
from collections.abc import Iterator

EXIT_RELEASED = 0
EXIT_COULD_NOT_RUN = 1
EXIT_BAD_RECIPE = 2
EXIT_REFUSED = 3
EXIT_UNDECIDED = 4
EXIT_INTERRUPTED = 130


class UserError(ValueError):
    """Something the user can mend: bad data, bad weights, a full disk."""

    exit_code = EXIT_COULD_NOT_RUN


class RecipeError(UserError):
    """The recipe or the command line is wrong."""

    exit_code = EXIT_BAD_RECIPE


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'x'?` for a near miss, else `; known: a, b, c`, ready to be appended to a message."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


@contextlib.contextmanager
def reading(where: object) -> Iterator[None]:
    """What is read from `where` may be anything: a fault met while it is used is its damage, said in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        known = (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError, RecursionError)
        if not isinstance(error, known) and not type(error).__module__.startswith("jinja2"):
            raise
        text = " ".join(str(error).split())[:80]
        raise UserError(f"{where}: damaged ({type(error).__name__}: {text}); run the recipe again") from error
