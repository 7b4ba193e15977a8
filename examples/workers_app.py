"""
Several workers, one budget of 50: a web server whose processes share the gate.

    uvicorn --app-dir examples --workers 4 workers_app:app
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

import attrs
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from aio_agentapi import Session, SessionManager, Settings
from aio_agentapi.redis import RedisGate

SETTINGS = Settings(deadline=10.0, max_waiting=1_000)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[dict[str, Session]]:
    del app
    accounts = {"eur": os.environ["AGENTAPI_TOKEN"]}
    base_url = os.environ["AGENTAPI_BASE_URL"]
    # Made in each worker: it connects when the first call comes.
    gate = RedisGate.factory(os.environ["AGENTAPI_REDIS_URL"])
    async with SessionManager(
        base_url, accounts=accounts, settings=SETTINGS, gate=gate
    ) as manager:
        yield {"session": manager.session("eur")}


async def points(request: Request) -> JSONResponse:
    session = cast("Session", request.state.session)
    return JSONResponse({"points": str(await session.points.balance())})


async def health(request: Request) -> JSONResponse:
    session = cast("Session", request.state.session)
    state = attrs.asdict(session.gate.statistics())
    state["waiting_by_lane"] = dict(state["waiting_by_lane"])
    return JSONResponse({"process": os.getpid(), **state})


app = Starlette(
    routes=[Route("/points", points), Route("/health", health)], lifespan=lifespan
)
