"""
Draw what ``agentapi demo`` prints in a terminal, from a run of it.

``python docs/demo.py`` writes docs/pictures/demo.svg. The times are those of this
machine, so it is drawn anew by hand, not by ``make draw``; a test compares the words.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

PICTURE: Final = Path(__file__).parent / "pictures" / "demo.svg"
# What rich loads from elsewhere, which no picture in a page may.
_FONTS: Final = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


def run(*options: str) -> str:
    """Return what the demo prints on a terminal, colours included."""
    ours, its = pty.openpty()
    with subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "aio_agentapi.cli", "demo", *options],
        stdout=its,
        stderr=subprocess.DEVNULL,  # the bar, which is gone in the end
    ) as process:
        os.close(its)
        pieces: list[bytes] = []
        while piece := _read(ours):
            pieces.append(piece)
    os.close(ours)
    if process.returncode:
        msg = f"the demo ended with {process.returncode}"
        raise RuntimeError(msg)
    return b"".join(pieces).decode().replace("\r\n", "\n")


def draw(printed: str) -> str:
    """Return the picture of a terminal."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=76, file=nowhere)
        console.print(Text.from_ansi(f"$ agentapi demo\n{printed.rstrip()}"))
        drawn = console.export_svg(title="agentapi demo", unique_id="demo")
    return _FONTS.sub("", drawn)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        # How Linux says that nobody has the other end any more.
        return b""


if __name__ == "__main__":
    PICTURE.write_text(draw(run()))
    print(PICTURE)
