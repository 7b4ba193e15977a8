"""The back office in a real browser, beside a real client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from aio_agentapi import Session
from aio_agentapi.errors import CredentialError, ForbiddenError, IpNotAllowedError
from aio_agentapi.sandbox import Sandbox, Switches
from tests.browser import PATIENCE, browsing, need, opened, picture
from tests.conftest import connect

need()

# One loop, and so one browser, for all of them.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncGenerator[Browser]:
    """Run a browser."""
    async with browsing() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def box() -> AsyncGenerator[Sandbox]:
    """Start a stand-in."""
    async with Sandbox() as box:
        yield box


@pytest_asyncio.fixture(loop_scope="module")
async def session(box: Sandbox) -> AsyncGenerator[Session]:
    """Open the operator's session at the stand-in."""
    async with connect(box) as session:
        yield session


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, box: Sandbox) -> AsyncGenerator[Page]:
    """Open the back office of the stand-in."""
    async with opened(browser, box.base_url) as page:
        yield page


async def visit(page: Page, box: Sandbox, name: str) -> None:
    """Go to an account by the tree."""
    await page.goto("/")
    await page.get_by_role("link", name=name, exact=True).click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(name)
    assert page.url == f"{box.base_url}/accounts/{box.account(name).code}"


async def test_allowed_ip_is_set_and_mended(
    page: Page, box: Sandbox, session: Session
) -> None:
    """A client from an address that is not there is refused, until it is."""
    await visit(page, box, "operator")
    addresses = page.get_by_label("Addresses")
    await addresses.fill("1.1.1.1 2.2.2.2\n3.3.3.3")
    await page.get_by_role("button", name="Save addresses").click()
    await expect(page.get_by_role("status")).to_contain_text("from 3 addresses")
    await expect(addresses).to_have_value("1.1.1.1\n2.2.2.2\n3.3.3.3")
    with pytest.raises(IpNotAllowedError):
        await session.agents.info()
    await addresses.fill("1.1.1.1\n<b>no address</b>")
    await page.get_by_role("button", name="Save addresses").click()
    await expect(page.get_by_role("alert")).to_contain_text("'<b>no' is no address")
    await expect(addresses).to_have_value("1.1.1.1\n<b>no address</b>")
    await expect(addresses).to_be_focused()
    assert len(box.account("operator").whitelist) == 3
    await addresses.fill("1.1.1.1 127.0.0.1")
    await page.get_by_role("button", name="Save addresses").click()
    await expect(page.get_by_role("status")).to_contain_text("from 2 addresses")
    assert (await session.agents.info()).whitelist == ("1.1.1.1", "127.0.0.1")
    await addresses.fill(" ")
    await page.get_by_role("button", name="Save addresses").click()
    await expect(page.get_by_role("status")).to_contain_text("from anywhere")
    assert (await session.agents.info()).whitelist == ()


async def test_a_subtree_is_suspended_and_resumed(page: Page, box: Sandbox) -> None:
    """Calls of all below are refused, and the tree says why."""
    await visit(page, box, "operator")
    await page.get_by_role("button", name="Suspend operator and all below").click()
    await expect(page.get_by_role("status")).to_contain_text("suspended")
    async with connect(box, "shop_1") as shop:
        with pytest.raises(ForbiddenError):
            await shop.points.balance()
        await page.goto("/")
        row = page.get_by_role("row").filter(has_text="shop_1")
        await expect(row).to_contain_text("suspended above")
        async with connect(box, "broker") as broker:
            await broker.points.balance()
        await visit(page, box, "operator")
        await page.get_by_role("button", name="Resume operator and all below").click()
        await expect(page.get_by_role("status")).to_contain_text("active")
        assert await shop.points.balance() == 1000


async def test_points_are_minted_and_moved_exactly(
    page: Page, box: Sandbox, session: Session
) -> None:
    """The largest amount and the smallest, as the client sees them too."""
    await visit(page, box, "broker")
    await page.locator("#mint").get_by_label("Amount").fill("1000000000000000")
    await page.get_by_role("button", name="Mint").click()
    await expect(page.get_by_role("status")).to_have_text(
        "Minted 1000000000000000.0000."
    )
    await visit(page, box, "operator")
    amount, move = page.get_by_label("Amount"), page.locator("#move")
    await amount.fill("999999999999999.9999")
    await move.get_by_role("button").click()
    await expect(page.get_by_role("status")).to_have_text("Moved 999999999999999.9999.")
    await amount.fill("1000000000000000")
    await move.get_by_label("Which way").select_option("back to broker")
    await move.get_by_role("button").click()
    await expect(page.get_by_role("status")).to_have_text(
        "Moved 1000000000000000.0000."
    )
    await amount.fill("999999999999999")
    await move.get_by_label("Which way").select_option("back to broker")
    await move.get_by_role("button").click()
    await expect(page.get_by_role("alert")).to_have_text("There are too few points.")
    assert str(await session.points.balance()) == "499999.9999"
    await page.goto("/")
    points = [
        await page.get_by_role("row").filter(has_text=name).get_by_role("cell").all()
        for name in ("broker", "operator")
    ]
    assert [await cells[1].inner_text() for cells in points] == [
        "1000000001000000.0001",
        "499999.9999",
    ]
    minted, held = box.audit()
    assert minted == held
    await visit(page, box, "operator")
    await page.get_by_role("link", name="Moves").click()
    first = page.get_by_role("row").nth(1)
    await expect(first).to_contain_text(
        "operatorbroker1000000000000000.0000499999.9999"
    )


async def test_the_gauge_reaches_fifty_and_never_more(
    page: Page, box: Sandbox, session: Session
) -> None:
    """Of 200 calls at once; and others who hold permits are seen, too."""
    await page.goto("/")
    row = page.get_by_role("row").filter(has_text="operator")
    await page.evaluate(
        """() => {
            window.seen = [];
            for (const meter of document.querySelectorAll('meter')) {
                new MutationObserver(() => window.seen.push(meter.value)).observe(
                    meter, {attributes: true, attributeFilter: ['value']});
            }
        }"""
    )
    # The stream is there.
    box.foreign("operator", 1)
    await expect(row).to_contain_text("1 of 50 (others: 1)")
    box.foreign("operator", 0)
    await expect(row).to_contain_text("0 of 50")
    box.faults.hold()
    loop = asyncio.get_running_loop()
    calls = [loop.create_task(session.points.balance()) for _ in range(200)]
    await expect(row).to_contain_text("50 of 50")
    box.faults.clear()
    await asyncio.gather(*calls)
    # What comes after all that was told in between.
    box.foreign("operator", 2)
    await expect(row).to_contain_text("2 of 50 (others: 2)")
    assert max(await page.evaluate("window.seen")) == 50
    assert box.gauge("operator").peak == 50
    # What is refused is counted while it happens.
    box.foreign("operator", 50)
    call = asyncio.create_task(session.points.balance())
    count = row.locator("td.number [data-live=busy]")
    await expect(count).not_to_have_text("0")
    box.foreign("operator", 0)
    await call
    await expect(count).to_have_text(str(box.gauge("operator").busy))


async def test_a_form_by_keyboard_alone(page: Page, box: Sandbox) -> None:
    """From the top of the page to what was done, with the focus in sight."""
    await page.goto(f"/accounts/{box.account('shop_1').code}")
    await page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="To the content")
    await expect(skip).to_be_focused()
    await expect(skip).to_be_in_viewport()
    await page.keyboard.press("Enter")
    amount = page.get_by_label("Amount")
    for _ in range(20):
        await page.keyboard.press("Tab")
        width = "getComputedStyle(document.activeElement).outlineWidth"
        assert await page.evaluate(width) == "3px"
        if await amount.evaluate("field => field === document.activeElement"):
            break
    await page.keyboard.type("12.5")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Move")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_have_text("Moved 12.5000.")
    await expect(page.get_by_role("status")).to_be_focused()
    assert box.account("shop_1").points == 10_125_000


async def test_a_new_token_is_shown_once(
    page: Page, box: Sandbox, session: Session
) -> None:
    """The old one stops working at once, and a reload shows nothing."""
    await visit(page, box, "operator")
    issue = page.get_by_role("button", name="Issue another token")
    await issue.click()
    # The box has to be ticked: the browser does not send it.
    await expect(page.get_by_role("status")).to_have_count(0)
    await session.points.balance()
    await page.get_by_label("The old token may stop working").check()
    await issue.click()
    shown = await page.get_by_role("status").locator("code").inner_text()
    assert shown == box.token("operator")
    with pytest.raises(CredentialError):
        await session.points.balance()
    await page.reload()
    await expect(page.get_by_role("status")).to_have_count(0)
    assert shown not in await page.content()


async def test_faults_and_switches(page: Page, box: Sandbox, session: Session) -> None:
    """They are turned on and off, and the client meets them."""
    await page.goto("/")
    await page.get_by_role("link", name="Switches and faults").click()
    await page.get_by_label("Kind").select_option("busy")
    await page.get_by_role("button", name="Turn on").click()
    await expect(page.get_by_role("alert")).to_contain_text("How often")
    await page.get_by_label("Times").fill("3")
    await page.get_by_label("Of", exact=True).select_option("points/transfer")
    await page.get_by_role("button", name="Turn on").click()
    on = page.get_by_role("listitem")
    await expect(on).to_have_text("busy of points/transfer, times 3")
    await session.points.transfer(box.account("shop_1").code, "1")
    assert box.gauge("operator").busy == 3
    await page.get_by_label("Kind").select_option("delay")
    await page.get_by_role("button", name="Turn on").click()
    await page.get_by_role("button", name="Turn all faults off").click()
    await expect(page.get_by_role("status")).to_have_text("All faults are off.")
    assert box.faults.on == ()
    await page.get_by_label("limit", exact=True).fill("7")
    await page.get_by_label("zone", exact=True).fill("Mars/Olympus")
    await page.get_by_role("button", name="Set the switches").click()
    await expect(page.get_by_role("alert")).to_contain_text("Mars/Olympus")
    await expect(page.get_by_label("zone", exact=True)).to_be_focused()
    await page.get_by_label("zone", exact=True).fill("Asia/Seoul")
    await page.get_by_label("busy_status", exact=True).select_option("503")
    await page.get_by_label("extra", exact=True).select_option("True")
    await page.get_by_role("button", name="Set the switches").click()
    await expect(page.get_by_role("status")).to_have_text("The switches are set.")
    assert box.switches == Switches(
        limit=7, zone="Asia/Seoul", busy_status=503, extra=True
    )


async def test_a_gauge_that_stands_still_says_so(browser: Browser) -> None:
    """When the stand-in has ended; a page of it is open somewhere all day."""
    # Not opened(): the browser complains, as it should.
    page = await browser.new_page()
    news = page.get_by_text("No news from the stand-in")
    async with Sandbox() as box:
        await page.goto(box.base_url)
        await expect(page.get_by_role("heading", level=1)).to_have_text("Accounts")
        await expect(news).to_have_count(0)
    await expect(news).to_be_visible(timeout=PATIENCE)


async def test_a_login_shows_what_is_below_it(browser: Browser) -> None:
    """And nothing else, until it ends."""
    async with (
        Sandbox(login=True) as box,
        opened(browser, box.base_url) as page,
    ):
        await page.goto("/")
        await page.get_by_label("Account").fill("operator")
        await page.get_by_label("Token").fill(box.token("broker"))
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("alert")).to_contain_text("No active account")
        assert box.token("broker") not in await page.content()
        await page.get_by_label("Token").fill(box.token("operator"))
        await page.get_by_role("button", name="Log in").click()
        names = page.get_by_role("rowheader").get_by_role("link")
        await expect(names).to_have_text(["operator", "shop_1", "shop_2"])
        assert "broker" not in await page.content()
        assert await page.evaluate("document.cookie") == ""
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Log in")
        await page.goto("/")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Log in")


async def test_a_name_that_is_markup_is_text(page: Page, box: Sandbox) -> None:
    """Wherever it stands."""
    ledger = box._service.deployment.ledger
    name = "<script>document.title = 'taken'</script>"
    root = ledger.create_root(name, "broker", 978)
    user, _ = ledger.create_user(root, name)
    ledger.mint(root.code, 10)
    ledger.deposit(root, user.code, 10)
    await page.goto("/")
    await page.get_by_role("link", name=name).click()
    for tab in ("Moves", "Users", "Transactions", "Account"):
        await expect(page.get_by_role("heading", level=1)).to_have_text(name)
        assert "taken'" in await page.title()
        await page.get_by_role("link", name=tab, exact=True).click()


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("light", 1000, "light"),
        ("dark", 1000, "dark"),
        ("narrow", 360, "light"),
    ],
)
async def test_no_page_is_wider_than_the_screen(
    browser: Browser, box: Sandbox, name: str, width: int, scheme: str
) -> None:
    """On a phone as at a desk; pictures of it are in the docs."""
    box.foreign("shop_2", 20)
    # As it looks while calls run: the layout, not the counting, is looked at.
    gauge = box.gauge("operator")
    gauge.in_flight, gauge.peak, gauge.busy = 38, 50, 3
    how = {"viewport": {"width": width, "height": 640}, "color_scheme": scheme}
    async with opened(browser, box.base_url, **how) as page:
        await page.goto("/")
        if scheme == "light":
            await picture(page, f"office-{name}")
        # The longest that the service allows, with nowhere to break.
        box.add("n" * 50, "operator", parent="broker")
        box.add("m" * 50, parent="n" * 50)
        code, long = box.account("operator").code, box.account("m" * 50).code
        pages = ("", f"accounts/{code}", f"accounts/{code}/moves", "service")
        for path in (*(f"/{one}" for one in pages), f"/accounts/{long}"):
            await page.goto(path)
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, path
            if scheme == "dark" and path.endswith(str(code)):
                await picture(page, f"office-{name}")
        ground = "getComputedStyle(document.body).backgroundColor"
        shade = (await page.evaluate(ground)).removeprefix("rgb(").split(",")[0]
        assert (int(shade) < 128) == (scheme == "dark")
