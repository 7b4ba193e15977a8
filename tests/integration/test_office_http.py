"""The back office without a browser: who is let in, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import attrs
import pytest

from aio_agentapi.sandbox import Sandbox, Switches
from aio_agentapi.sandbox._office import _KEPT, _Shelf


@attrs.frozen
class Answer:
    """What came back."""

    status: int
    text: str
    headers: Mapping[str, str]


@attrs.frozen
class Visitor:
    """Reads pages and sends forms, as one of the pages does."""

    box: Sandbox
    http: aiohttp.ClientSession

    async def get(self, path: str, **headers: str) -> Answer:
        """Read a page."""
        return await self._ask("GET", path, None, headers)

    async def post(
        self, path: str, form: Mapping[str, str], headers: Mapping[str, str] | None
    ) -> Answer:
        """Send a form with just these headers."""
        return await self._ask("POST", path, form, headers or {})

    async def send(self, path: str, /, **form: str) -> Answer:
        """Send a form as a page of its own does."""
        return await self.post(path, form, {"Origin": self.box.base_url})

    async def look(self, path: str) -> Answer:
        """Ask for the head of a page."""
        return await self._ask("HEAD", path, None, {})

    async def act(self, name: str, act: str, /, **form: str) -> Answer:
        """Send a form of the page of an account."""
        return await self.send(f"/accounts/{self.box.account(name).code}/{act}", **form)

    async def log_in(self, name: str, token: str | None = None) -> Answer:
        """Log in."""
        token = self.box.token(name) if token is None else token
        return await self.send("/login", account=name, token=token)

    async def _ask(
        self,
        method: str,
        path: str,
        form: Mapping[str, str] | None,
        headers: Mapping[str, str],
    ) -> Answer:
        url = f"{self.box.base_url}{path}"
        async with self.http.request(method, url, data=form, headers=headers) as got:
            return Answer(got.status, await got.text(), got.headers)


@asynccontextmanager
async def visiting(box: Sandbox) -> AsyncGenerator[Visitor]:
    """Come with a jar for cookies."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as http:
        yield Visitor(box, http)


@pytest.fixture
async def visitor(box: Sandbox) -> AsyncGenerator[Visitor]:
    """Visit a stand-in without a login."""
    async with visiting(box) as visitor:
        yield visitor


@pytest.fixture
async def guest() -> AsyncGenerator[Visitor]:
    """Visit a stand-in with one."""
    async with Sandbox(login=True) as box, visiting(box) as visitor:
        yield visitor


async def shown(visitor: Visitor) -> dict[str, str]:
    """Return what the form of the switches has in it."""
    page = (await visitor.get("/service")).text
    inputs = re.findall(r'<input value="([^"]*)" id="switches-(\w+)"', page)
    selects = re.findall(
        r'<select id="switches-(\w+)".*?<option value="([^"]*)" selected', page
    )
    return {name: value for value, name in inputs} | dict(selects)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "OWN", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "OWN", "Sec-Fetch-Site": "same-site"},
        {"Referer": "OWN"},
    ],
)
async def test_a_post_of_another_page_is_refused(
    visitor: Visitor, headers: dict[str, str]
) -> None:
    """Also of one on another port of this machine; nothing happens."""
    box = visitor.box
    sent = {name: v.replace("OWN", box.base_url) for name, v in headers.items()}
    code, before = box.account("broker").code, box.accounts()
    for path, form in (
        (f"/accounts/{code}/mint", {"amount": "1"}),
        (f"/accounts/{code}/state", {"state": "suspended"}),
        (f"/accounts/{code}/allow", {"addresses": "1.1.1.1"}),
        (f"/accounts/{code}/token", {"sure": "yes"}),
        ("/service/fault", {"kind": "empty", "share": "1", "seconds": "0"}),
        ("/service/switches", {}),
    ):
        answer = await visitor.post(path, form, sent)
        assert (answer.status, path) == (403, path)
    assert (box.accounts(), box.faults.on) == (before, ())


async def test_an_own_page_may_post(visitor: Visitor) -> None:
    """By either name of the machine, and the browser's word that it is one."""
    box = visitor.box
    for origin in (box.base_url, box.base_url.replace("127.0.0.1", "localhost")):
        headers = {
            "Origin": origin,
            "Host": origin.removeprefix("http://"),
            "Sec-Fetch-Site": "same-origin",
        }
        path = f"/accounts/{box.account('broker').code}/mint"
        answer = await visitor.post(path, {"amount": "1"}, headers)
        assert (answer.status, "Minted 1.0000." in answer.text) == (200, True)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "10.0.0.1", "["])
async def test_another_host_is_refused(visitor: Visitor, host: str) -> None:
    """A name that is made to lead here gets no page, no stream and no say."""
    box = visitor.box
    code = box.account("broker").code
    own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for path in ("/", f"/accounts/{code}", f"/events?code={code}", "/sandbox/audit"):
        assert (await visitor.get(path, Host=host)).status in {400, 421}, path
    for path in (f"/accounts/{code}/mint", "/service/clear"):
        assert (await visitor.post(path, {"amount": "1"}, own)).status in {400, 421}
    url = f"{box.base_url}/sandbox/mint"
    sent = {"name": "broker", "points": "1"}
    async with visitor.http.post(url, json=sent, headers={"Host": host}) as answer:
        assert answer.status in {400, 421}
    assert box.account("broker").points == 10_000_000_000


async def test_a_page_loads_nothing_else_and_is_kept_nowhere(visitor: Visitor) -> None:
    """It says so itself, and in nobody's frame."""
    answer = await visitor.get("/")
    rules = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in rules
    assert "frame-ancestors 'none'" in rules
    assert "unsafe" not in rules
    assert answer.headers["Cache-Control"] == "no-store"
    for path in re.findall(r'(?:href|src)="([^"]+)"', answer.text):
        assert path.startswith(("/", "#", "data:,")), path
    for name, kind in (("style.css", "text/css"), ("script.js", "text/javascript")):
        assert f'"/office/{name}"' in answer.text
        found = await visitor.get(f"/office/{name}")
        assert found.headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert "http:" not in found.text
    assert (await visitor.get("/office/__init__.py")).status == 404


async def test_no_token_is_on_any_page(visitor: Visitor) -> None:
    """But where it was made."""
    box = visitor.box
    pages = ["/", "/service"]
    for account in box.accounts():
        pages += [
            f"/accounts/{account.code}{tab}"
            for tab in ("", "/moves", "/users", "/feed")
        ]
    for page in pages:
        answer = await visitor.get(page)
        assert answer.status == 200
        assert not [a for a in box.accounts() if a.token in answer.text]


async def test_what_is_typed_comes_back_as_text(visitor: Visitor) -> None:
    """In a field, and in what is said of it."""
    typed = "</textarea><script>alert(1)</script>"
    answer = await visitor.act("broker", "allow", addresses=typed)
    assert answer.status == 400
    assert "<script>alert" not in answer.text
    assert "&lt;/textarea&gt;&lt;script&gt;" in answer.text
    answer = await visitor.get("/?find=%22%3E%3Cscript%3E&offset=x")
    assert (answer.status, "<script>" in answer.text) == (200, False)


async def test_a_move_that_is_sent_twice_moves_once(visitor: Visitor) -> None:
    """The form has a reference; with another amount it is refused."""
    box = visitor.box
    page = await visitor.get(f"/accounts/{box.account('shop_1').code}")
    found = re.search(r'name="reference" value="(office-\w+)"', page.text)
    assert found is not None
    sent = {"way": "give", "amount": "5", "reference": found[1]}
    for _ in range(2):
        assert (await visitor.act("shop_1", "move", **sent)).status == 200
    assert box.account("shop_1").points == 10_050_000
    again = await visitor.act("shop_1", "move", **{**sent, "amount": "6"})
    assert (again.status, "sent before" in again.text) == (400, True)
    assert box.account("shop_1").points == 10_050_000


@pytest.mark.parametrize(
    ("name", "act", "form", "said"),
    [
        ("shop_1", "move", {"way": "give", "amount": "0"}, "more than 0"),
        ("shop_1", "move", {"way": "give", "amount": "1.00001"}, "four decimals"),
        ("shop_1", "move", {"way": "give", "amount": "-1"}, "digits"),
        ("shop_1", "move", {"way": "give", "amount": "1e3"}, "digits"),
        ("shop_1", "move", {"way": "give", "amount": "\u0661"}, "digits"),
        ("shop_1", "move", {"way": "give"}, "digits"),
        ("shop_1", "move", {"way": "give", "amount": "999999"}, "too few"),
        ("shop_1", "move", {"way": "x", "amount": "1"}, "Which way?"),
        (
            "shop_1",
            "move",
            {"way": "give", "amount": "1", "reference": "a b"},
            "visible ASCII",
        ),
        ("broker", "mint", {"amount": "10000000000000000"}, "at most 10^15"),
        ("broker", "allow", {"addresses": "1.1.1"}, "is no address"),
        ("broker", "allow", {"addresses": "fe80::1%eth0"}, "is no address"),
        ("broker", "state", {"state": "asleep"}, "is active or suspended"),
        ("broker", "token", {}, "may stop working"),
        ("broker", "foreign", {"held": "-1"}, "whole number"),
        ("broker", "allow", {}, "No addresses were sent"),
    ],
)
async def test_a_form_that_cannot_be_accepted_changes_nothing(
    visitor: Visitor, name: str, act: str, form: dict[str, str], said: str
) -> None:
    """And is shown again, with what is wrong."""
    before = visitor.box.accounts()
    answer = await visitor.act(name, act, **form)
    assert answer.status == 400
    assert said in answer.text
    assert visitor.box.accounts() == before
    assert visitor.box.gauge(name).foreign == 0


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"kind": "x"}, "there is no fault"),
        ({"path": "x/y"}, "there is no path"),
        ({"share": "1.5"}, "0 to 1"),
        ({"seconds": "nan"}, "A number"),
        ({"times": "0"}, "1 to 1000000"),
        ({"kind": "delay", "executed": "no"}, "executed"),
        ({"status": "7"}, "200 to"),
        ({"status": "600"}, "200 to"),
        ({"kind": "drop_before", "status": "503"}, "makes no answer"),
    ],
)
async def test_a_fault_that_cannot_be_is_refused(
    visitor: Visitor, form: dict[str, str], said: str
) -> None:
    """With what is wrong."""
    usual = {"kind": "empty", "share": "1", "seconds": "0", "code": "1001"}
    answer = await visitor.send("/service/fault", **{**usual, **form})
    assert (answer.status, said in answer.text) == (400, True)
    assert list(visitor.box.faults.on) == []
    assert (await visitor.send("/service/fault", **usual)).status == 200
    assert [one.kind for one in visitor.box.faults.on] == ["empty"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"zone": "Europe"}, "There is no zone"),
        ({"zone": ""}, "There is no zone"),
        ({"zone": "Mars/Olympus"}, "There is no zone"),
        ({"latency": "-1"}, "A number, 0 or more"),
    ],
)
async def test_a_switch_that_cannot_be_is_refused(
    visitor: Visitor, typed: dict[str, str], said: str
) -> None:
    """At its own field, and without a word of the machine's folders."""
    form = {**await shown(visitor), **typed}
    answer = await visitor.send("/service/switches", **form)
    assert (answer.status, said in answer.text) == (400, True)
    assert "Errno" not in answer.text
    assert visitor.box.switches == Switches()


async def test_the_address_of_a_form_leads_to_its_page(visitor: Visitor) -> None:
    """A form that was refused leaves it in the browser."""
    code = visitor.box.account("shop_1").code
    for path, title in (
        ("/service/fault", "Switches and faults"),
        (f"/accounts/{code}/allow", "shop_1"),
    ):
        answer = await visitor.get(path)
        assert (answer.status, f"<h1>{title}</h1>" in answer.text) == (200, True)


async def test_a_new_token_is_shown_to_who_reads_it(visitor: Visitor) -> None:
    """A look at the head does not use it up."""
    url = f"{visitor.box.base_url}/accounts/{visitor.box.account('shop_1').code}/token"
    async with visitor.http.post(
        url,
        data={"sure": "yes"},
        headers={"Origin": visitor.box.base_url},
        allow_redirects=False,
    ) as sent:
        page = sent.headers["Location"]
    token = visitor.box.token("shop_1")
    assert (await visitor.look(page)).status == 200
    assert token in (await visitor.get(page)).text
    assert token not in (await visitor.get(page)).text


async def test_nobody_of_that_name(visitor: Visitor) -> None:
    """An empty table would look as if something were missing."""
    assert "None found." in (await visitor.get("/?find=zzz")).text
    assert "None found." not in (await visitor.get("/?find=shop")).text


async def test_points_begin_at_the_root(visitor: Visitor) -> None:
    """Nobody is above it to give it some, and below it none come into being."""
    before = visitor.box.accounts()
    assert (await visitor.act("broker", "move", way="give", amount="1")).status == 403
    assert (await visitor.act("shop_1", "mint", amount="1")).status == 403
    assert visitor.box.accounts() == before


async def test_html_without_a_status_is_a_proxys(visitor: Visitor) -> None:
    """As where it is turned on in a test."""
    form = {"kind": "html", "share": "1", "seconds": "0", "code": "1001"}
    await visitor.send("/service/fault", **form)
    assert [one.status for one in visitor.box.faults.on] == [502]


async def test_every_switch_keeps_its_value(visitor: Visitor) -> None:
    """A form that is sent as it is shown changes nothing."""
    chosen = Switches(
        limit=3, row_delay=0.00001, extra=True, busy_status=503, dates="iso"
    )
    visitor.box.switches = chosen
    form = await shown(visitor)
    assert form.keys() == {field.name for field in attrs.fields(Switches)}
    visitor.box.switches = Switches()
    assert (await visitor.send("/service/switches", **form)).status == 200
    assert visitor.box.switches == chosen
    assert visitor.box._service.deployment.ledger.row_delay == chosen.row_delay


async def test_long_lists_come_in_pages(visitor: Visitor) -> None:
    """Each row once, the newest first; accounts in the order of the tree."""
    box = visitor.box
    ledger, shop = box._service.deployment.ledger, box.account("shop_1")
    for number in range(250):
        user, _ = ledger.create_user(shop, f"user_{number}")
        ledger.deposit(shop, user.code, 1)
        ledger.create(box.account("operator"), f"branch_{number}", "agent", None, ())
        ledger.mint(box.account("broker").code, 1)
    moved = len(ledger.history(box.account("broker"), 0, 1000))
    for path, pattern, count in (
        (f"/accounts/{shop.code}/users", r"<td>(user_\d+)</td>", 250),
        (f"/accounts/{shop.code}/feed", r"<tr><td>(\d+)</td>", 250),
        (f"/accounts/{box.account('broker').code}/moves", r"<tr><td>(\d+)</td>", moved),
        ("/?find=branch", r">(branch_\d+)</a>", 250),
    ):
        seen: list[str] = []
        onward: str | None = path
        for _ in range(4):
            if onward is None:
                break
            page = (await visitor.get(onward)).text
            seen += re.findall(pattern, page)
            found = re.search(r'<a href="([^"]+)" rel="next"', page)
            onward = found and found[1].replace("&amp;", "&")
        assert onward is None
        assert (len(seen), len(set(seen))) == (count, count), path
        numbers = [int(text.rpartition("_")[2]) for text in seen]
        assert numbers == sorted(numbers, reverse=not path.startswith("/?")), path


async def test_the_way_in_is_an_account_with_its_token(guest: Visitor) -> None:
    """By name or code; anything else is refused, and shows nothing."""
    box = guest.box
    for path in ("/", f"/accounts/{box.account('shop_1').code}", "/events?code=1001"):
        assert "Log in" in (await guest.get(path)).text
    for name, token in (
        ("operator", "open-sesame"),
        ("operator", ""),
        ("operator", box.token("shop_1")),
        ("broker", box.token("operator")),
        ("", box.token("operator")),
    ):
        answer = await guest.log_in(name, token)
        assert (answer.status, "No active account" in answer.text) == (403, True)
        assert "operator</a>" not in (await guest.get("/")).text
        assert not token or token not in answer.text
    answer = await guest.log_in(
        str(box.account("operator").code), box.token("operator")
    )
    assert (answer.status, "shop_1</a>" in answer.text) == (200, True)


async def test_the_cookie_stays_in_the_browser(guest: Visitor) -> None:
    """No script sees it, no other site sends it, and it is not the token."""
    url = f"{guest.box.base_url}/login"
    form = {"account": "operator", "token": guest.box.token("operator")}
    headers = {"Origin": guest.box.base_url}
    async with guest.http.post(
        url, data=form, headers=headers, allow_redirects=False
    ) as answer:
        cookie = answer.headers["Set-Cookie"]
        assert answer.status == 303
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert form["token"] not in cookie


async def test_a_login_reaches_only_what_is_below(guest: Visitor) -> None:
    """Nothing above or beside, and nothing that is the service's own doing."""
    box = guest.box
    box.add("other", "broker", points=5)
    await guest.log_in("operator")
    before = box.accounts()
    for name in ("broker", "other"):
        code = box.account(name).code
        for path in ("", "/moves", "/users", "/feed"):
            assert (await guest.get(f"/accounts/{code}{path}")).status == 404
        assert (await guest.get(f"/events?code={code}")).status == 404
        for act in ("move", "allow", "state", "token", "mint", "foreign"):
            assert (await guest.act(name, act, amount="1")).status == 404
    assert "broker" not in (await guest.get("/?find=o")).text
    own = await guest.get(f"/accounts/{box.account('operator').code}/moves")
    assert "broker" not in own.text
    for act in ("mint", "foreign"):
        assert (await guest.act("operator", act, amount="1", held="1")).status == 404
    for path in ("/service", "/sandbox/audit", "/sandbox/gauge?name=broker"):
        assert (await guest.get(path)).status == 404
    assert (await guest.send("/service/clear")).status == 404
    url = f"{box.base_url}/sandbox/mint"
    async with guest.http.post(url, json={"name": "shop_1", "points": "1"}) as got:
        assert got.status == 404
    answer = await guest.act("operator", "move", way="give", amount="1")
    assert (answer.status, "account above" in answer.text) == (403, True)
    answer = await guest.act("operator", "state", state="suspended")
    assert (answer.status, "account above" in answer.text) == (403, True)
    assert box.accounts() == before
    assert (await guest.act("shop_1", "move", way="take", amount="1")).status == 200
    assert box.account("operator").points == before[1].points + 10_000


async def test_a_login_ends_with_its_token(guest: Visitor) -> None:
    """With a new one that somebody else made, or a suspension above; not its own."""
    box = guest.box
    await guest.log_in("operator")
    answer = await guest.act("operator", "token", sure="yes")
    assert box.token("operator") in answer.text
    assert "shop_1</a>" in (await guest.get("/")).text
    ledger = box._service.deployment.ledger
    ledger.reissue_token(box.account("operator"))
    assert "Log in" in (await guest.get("/")).text
    await guest.log_in("operator")
    assert "shop_1</a>" in (await guest.get("/")).text
    ledger.update(box.account("broker"), "suspended", None)
    assert "Log in" in (await guest.get("/")).text
    assert (await guest.log_in("operator")).status == 403


async def test_a_login_that_is_ended_is_over_for_good(guest: Visitor) -> None:
    """The cookie opens nothing any more, whoever has it still."""
    await guest.log_in("operator")
    (cookie,) = guest.http.cookie_jar
    kept = f"{cookie.key}={cookie.value}"
    assert "Log in" in (await guest.send("/logout")).text
    assert "Log in" in (await guest.get("/", Cookie=kept)).text


async def test_a_stream_ends_with_its_login(guest: Visitor) -> None:
    """And tells the gauges as they are before that."""
    box = guest.box
    await guest.log_in("operator")
    code = box.account("operator").code
    async with guest.http.get(f"{box.base_url}/events?code={code}") as stream:
        first = json.loads((await stream.content.readline()).removeprefix(b"data: "))
        assert first[str(code)]["calls"] == "0 of 50"
        box.foreign("operator", 7)
        await stream.content.readline()
        told = json.loads((await stream.content.readline()).removeprefix(b"data: "))
        assert told[str(code)]["value"] == 7
        box._service.deployment.ledger.reissue_token(box.account("operator"))
        async with asyncio.timeout(10):
            assert await stream.content.read() == b"\n"


async def test_a_stream_ends_with_the_stand_in() -> None:
    """Nobody waits for it, and it says nothing."""
    async with visiting(Sandbox()) as visitor:
        async with visitor.box as box:
            url = f"{box.base_url}/events?code={box.account('operator').code}"
            stream = await visitor.http.get(url)
            await stream.content.readline()
        assert await stream.content.read() == b"\n"
        stream.close()


async def test_books_that_cannot_be_written_are_told(visitor: Visitor) -> None:
    """As a page, and nothing is changed."""
    ledger = visitor.box._service.deployment.ledger
    ledger.sql.execute("PRAGMA query_only = ON")
    answer = await visitor.act("broker", "mint", amount="1")
    assert (answer.status, "cannot be used" in answer.text) == (500, True)
    ledger.sql.execute("PRAGMA query_only = OFF")
    assert (await visitor.get("/accounts/9")).status == 404


def test_what_nobody_reads_is_not_kept_for_ever() -> None:
    """Of logins and notes the oldest are forgotten."""
    shelf = _Shelf[int]()
    keys = [shelf.put(number) for number in range(_KEPT + 2)]
    assert [shelf.get(key) for key in keys[:3]] == [None, None, 2]
    assert shelf.take(keys[2]) == 2
    assert shelf.get(keys[2]) is None
