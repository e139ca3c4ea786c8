"""What the programs that extract a corpus have in common: from arguments to an exit code."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from ast_fast_kernels.console import check_paths, fail, parse_options, send_nowhere
from ast_fast_kernels.corpus.extractor import Extractor
from ast_fast_kernels.corpus.run import Corpus, extract_corpus
from ast_fast_kernels.errors import InputError

Options = TypeVar("Options", bound=Corpus)


def run_command(
    kind: type[Options],
    program: str,
    argv: Sequence[str] | None,
    extractor_of: Callable[[Options], Extractor],
) -> int:
    """Extract what the arguments ask for; return the exit code.

    0 when the output is complete; 1 when some files were bad, each named on standard error; 2,
    after a line on standard error, when the run could not begin or go on; 130 when interrupted;
    141, as in other programs, when standard output was closed.

    Args:
        kind: The program's options.
        program: Its name.
        argv: The arguments; None takes the command line's.
        extractor_of: Makes the extractor that the options ask for.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an encoding may lack characters of file names
    arguments = _with_address(list(sys.argv[1:] if argv is None else argv))
    options = parse_options(kind, program, arguments)
    try:
        check_paths(arguments, "--out")
        return extract_corpus(options, extractor_of(options))
    except InputError as error:
        return fail(*error.problems)
    except MemoryError:
        return fail("out of memory: lower --jobs or --shard-size; --resume goes on")
    except KeyboardInterrupt:
        print("\ninterrupted; --resume goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        send_nowhere(sys.stdout)
        return 141


def _with_address(arguments: list[str]) -> list[str]:
    """Return the arguments with the address that `--ray` has when it stands alone."""
    full = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        full.append(argument)
        if argument == "--ray" and following.startswith("--"):
            full.append("auto")
    return full
