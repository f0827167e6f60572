"""How a command ends that cannot do what was asked."""

import sys
from typing import NoReturn

import typer


def fail(message: str, code: int = 1) -> NoReturn:
    """Say why on stderr, and end: 1 for what went wrong, 2 for what was asked wrongly."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)
