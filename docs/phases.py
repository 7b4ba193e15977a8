"""Draw the phases of a payment from the table that the library follows."""

from __future__ import annotations

from aio_agentapi._journal import FREE, HAPPENED, MOVES, Phase


def diagram() -> str:
    """Return the diagram in Mermaid's words."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.INTENT}"]
    lines += [f"    {p} --> {after}" for p in Phase for after in MOVES[p]]
    lines += [f"    {p}: {p} (it happened)" for p in Phase if p in HAPPENED]
    lines += [f"    {p}: {p} (it did not)" for p in Phase if p in FREE]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(diagram(), end="")
