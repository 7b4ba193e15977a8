"""What a report of an error could show: for tests that look for a token in it."""

from __future__ import annotations

import pickle
import traceback

from aio_agentapi.errors import AgentAPIError


def told(error: BaseException) -> str:
    """Return all of it: texts, fields, pickle, causes, and locals of every frame."""
    seen: list[str] = []
    links: list[BaseException] = [error]
    # The chain is followed by hand: a report may leave out what it thinks is hidden.
    while links:
        link = links.pop()
        # Without the frame of the test, which has the token itself.
        frames = link.__traceback__ and link.__traceback__.tb_next
        report = traceback.TracebackException(
            type(link), link, frames, capture_locals=True
        )
        seen += [repr(link), str(link), repr(link.args), "".join(report.format())]
        seen.append(repr(getattr(link, "__notes__", ())))
        links += [x for x in (link.__cause__, link.__context__) if x is not None]
    if isinstance(error, AgentAPIError):
        pickled = pickle.dumps(error)
        seen += [repr(pickled), repr(pickle.loads(pickled))]  # noqa: S301 - our own
    return " ".join(seen)


def is_in(text: str, token: str) -> bool:
    """Tell whether a token, or a telling part of it, is in a text."""
    parts = [token, *(part for part in token.split("-") if len(part) > 4)]
    return any(part.lower() in text.lower() for part in parts)
