"""One stand-in for all tests of a run, which behaves as an older deployment."""

import pytest

from aio_agentapi import SessionManager
from aio_agentapi.sandbox import Sandbox, Switches


@pytest.fixture(scope="session")
def agentapi_switches() -> Switches:
    return Switches(generation="older", statuses="http", feed_spacing=0)


@pytest.fixture
def agentapi_sandbox(agentapi_run_sandbox: Sandbox) -> Sandbox:
    return agentapi_run_sandbox


@pytest.mark.parametrize("name", ["shop_7", "shop_8"])
async def test_each_test_has_a_shop_of_its_own(
    agentapi: SessionManager, agentapi_sandbox: Sandbox, name: str
) -> None:
    operator = agentapi.session("operator")
    shop = await operator.agents.create(name)
    await operator.points.transfer(shop.agent.agent_code, "5")
    assert agentapi_sandbox.account(name).points == 50_000
