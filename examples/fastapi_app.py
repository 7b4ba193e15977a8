"""
Points over HTTP with FastAPI.

AGENTAPI_BASE_URL=… AGENTAPI_TOKEN=… uvicorn --app-dir examples fastapi_app:app
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from web_errors import answer

from aio_agentapi import Session, SessionManager, Settings
from aio_agentapi.errors import AgentAPIError

# Who waits longer than a visitor does has waited for nothing.
SETTINGS = Settings(deadline=10.0, max_waiting=1000)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    accounts = {"eur": os.environ["AGENTAPI_TOKEN"]}
    base_url = os.environ["AGENTAPI_BASE_URL"]
    async with SessionManager(
        base_url, accounts=accounts, settings=SETTINGS
    ) as manager:
        app.state.session = manager.session("eur")
        yield


app = FastAPI(lifespan=lifespan)


def the_session(request: Request) -> Session:
    session: Session = request.app.state.session
    return session


Eur = Annotated[Session, Depends(the_session)]


class Gift(BaseModel):
    # As a text: a JSON number would go through a binary float.
    amount: str
    # Made by whoever asks, once for each gift: asking again is harmless then.
    reference: str


@app.exception_handler(AgentAPIError)
async def on_error(_: Request, error: AgentAPIError) -> JSONResponse:
    status, body = answer(error)
    return JSONResponse(body, status)


@app.get("/points")
async def points(session: Eur) -> dict[str, Decimal]:
    return {"points": await session.points.balance()}


@app.post("/agents/{agent_code}/points")
async def give(agent_code: int, gift: Gift, session: Eur) -> dict[str, Decimal]:
    move = await session.points.transfer(
        agent_code, gift.amount, reference=gift.reference
    )
    return {"moved": move.amount, "left": move.balance}


@app.get("/health")
async def health(session: Eur) -> dict[str, int]:
    state = session.gate.statistics()
    return {
        "limit": state.limit,
        "share": state.share,
        "in_use": state.in_use,
        "waiting": state.waiting,
        "busy_answers": state.busy_answers,
        "late_answers": state.late_answers,
    }
