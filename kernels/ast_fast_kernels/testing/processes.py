"""Programs in processes of their own, for what a test must not do to its own process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def run_program(program: str, *arguments: str, timeout: float = 120.0, **environment: str) -> str:
    """Run a program in a fresh process and return what it printed.

    Args:
        program: Python source; it runs from a file, which spawned children can import.
        arguments: Its command line.
        timeout: In seconds.
        environment: Variables that differ from this process's.
    Raises:
        RuntimeError: Its exit code is not 0; the message is what it wrote to stderr.
        subprocess.TimeoutExpired: It took longer than `timeout`.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "program.py"
        script.write_text(program, encoding="utf-8")
        finished = subprocess.run(
            [sys.executable, str(script), *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    if finished.returncode != 0:
        raise RuntimeError(f"exit code {finished.returncode}: {finished.stderr}")
    return finished.stdout


def modules_loaded_by(statements: str) -> set[str]:
    """Return the modules that a fresh process has after some statements."""
    return set(run_program(f"{statements}\nimport sys\nprint(*sys.modules)").split())


@contextmanager
def private_memory_limit(more: int, what: str) -> Iterator[None]:
    """Inside a `with` block, limit how much more private memory this process may take.

    Private memory is neither shared nor a mapped file; memory that was freed to malloc counts.

    Args:
        more: The limit, in bytes.
        what: What the block does, for the error.
    Raises:
        MemoryError: The block needed more; for its tensors, torch raises RuntimeError instead.
    """
    import resource  # which Windows lacks

    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line
    )
    now = 1024 * int(line.split()[1])
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now + more, hard))
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{what} took more than {more:,} bytes") from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
