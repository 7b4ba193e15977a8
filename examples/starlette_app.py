"""
Points over HTTP with Starlette.

AGENTAPI_BASE_URL=… AGENTAPI_TOKEN=… uvicorn --app-dir examples starlette_app:app
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from web_errors import answer

from aio_agentapi import Session, SessionManager, Settings
from aio_agentapi.errors import AgentAPIError

# Who waits longer than a visitor does has waited for nothing.
SETTINGS = Settings(deadline=10.0, max_waiting=1000)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[dict[str, Session]]:
    del app
    accounts = {"eur": os.environ["AGENTAPI_TOKEN"]}
    base_url = os.environ["AGENTAPI_BASE_URL"]
    async with SessionManager(
        base_url, accounts=accounts, settings=SETTINGS
    ) as manager:
        yield {"session": manager.session("eur")}


def the_session(request: Request) -> Session:
    session: Session = request.state.session
    return session


async def on_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, AgentAPIError):
        raise error
    status, body = answer(error)
    return JSONResponse(body, status)


async def points(request: Request) -> JSONResponse:
    balance = await the_session(request).points.balance()
    # As a text: a JSON number would go through a binary float.
    return JSONResponse({"points": str(balance)})


async def give(request: Request) -> JSONResponse:
    try:
        gift = await request.json()
        # The reference is made by whoever asks, once for each gift: asking again
        # is harmless then.
        amount, reference = gift["amount"], gift["reference"]
    except (ValueError, LookupError, TypeError):
        return JSONResponse({"error": "a gift is an amount and a reference"}, 422)
    move = await the_session(request).points.transfer(
        request.path_params["agent_code"], amount, reference=reference
    )
    return JSONResponse({"moved": str(move.amount), "left": str(move.balance)})


async def health(request: Request) -> JSONResponse:
    state = the_session(request).gate.statistics()
    names = ("limit", "share", "in_use", "waiting", "busy_answers", "late_answers")
    return JSONResponse({name: getattr(state, name) for name in names})


app = Starlette(
    routes=[
        Route("/points", points),
        Route("/agents/{agent_code:int}/points", give, methods=["POST"]),
        Route("/health", health),
    ],
    exception_handlers={AgentAPIError: on_error},
    lifespan=lifespan,
)
