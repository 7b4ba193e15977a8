"""The back office's pages of one account: what it is, and what happened there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlencode

from aio_agentapi.sandbox import _parts
from aio_agentapi.sandbox._forms import digits
from aio_agentapi.sandbox._lookup import PAGE
from aio_agentapi.sandbox._markup import Html, Part, join, tag
from aio_agentapi.sandbox._pages import Shown, Viewer, frame
from aio_agentapi.sandbox._records import (
    BET,
    DEPOSIT,
    WIN,
    WITHDRAW,
    Account,
    Move,
    Row,
    User,
)

_KINDS: Final = {BET: "Bet", WIN: "Win", DEPOSIT: "Deposit", WITHDRAW: "Withdraw"}
_TABS: Final = {
    "": "Account",
    "moves": "Moves",
    "users": "Users",
    "feed": "Transactions",
}


def account(
    viewer: Viewer, one: Shown, above: Sequence[Account], *, address: str, once: str
) -> Html:
    """
    Show one account, and what can be done with it.

    Args:
        viewer: Who looks.

        one: The account.

        above: The accounts above it that he sees, from the top.

        address: Where he comes from.

        once: A reference for one move of points.
    """
    account = one.account
    parent = above[-1] if above else None
    is_owner = viewer.account is None
    return frame(
        account.name,
        viewer,
        _tabs(account, "", above),
        _facts(one),
        tag(
            "div",
            _move(viewer, account, parent, once) if parent else None,
            _mint(viewer, account) if is_owner and account.parent is None else None,
            _allow(viewer, account, address),
            None if viewer.is_(account) else _suspend(viewer, account),
            _token(viewer, account),
            _others(viewer, one) if is_owner else None,
            class_="cards",
        ),
    )


def _facts(one: Shown) -> Html:
    account = one.account
    facts: dict[str, Part] = {
        "Points": digits(account.points),
        "State": one.state(),
        "Calls in flight": one.calls(),
        "Most at once": one.told("peak"),
        "Refused with 1018": one.told("busy"),
        "Role": account.role,
        "Code": account.code,
        "Currency": account.currency,
    }
    told = [
        tag("div", tag("dt", name), tag("dd", value, data_gauge=account.code))
        for name, value in facts.items()
    ]
    return tag("dl", *told)


def _move(viewer: Viewer, account: Account, parent: Account, once: str) -> Html:
    form = viewer.form("move")
    ways = {
        "give": f"from {parent.name} to {account.name}",
        "take": f"back to {parent.name}",
    }
    return _act(
        "Move points",
        f"{parent.name} has {digits(parent.points)}.",
        form.write(
            f"/accounts/{account.code}/move",
            form.choice("way", "Which way", ways),
            form.field("amount", "Amount", inputmode="decimal", autocomplete="off"),
            # The service's own means against moving twice what was sent twice.
            tag("input", type="hidden", name="reference", value=once),
            button="Move",
        ),
    )


def _mint(viewer: Viewer, account: Account) -> Html:
    form = viewer.form("mint")
    return _act(
        "Mint points",
        "The only source of points: from here they flow down the tree.",
        form.write(
            f"/accounts/{account.code}/mint",
            form.field("amount", "Amount", inputmode="decimal", autocomplete="off"),
            button="Mint",
        ),
    )


def _allow(viewer: Viewer, account: Account, address: str) -> Html:
    form = viewer.form("allow")
    field = form.field(
        "addresses",
        "Addresses",
        value="\n".join(account.whitelist),
        hint="Separated by spaces or new lines. Blank: from anywhere.",
        kind="textarea",
        rows=3,
        spellcheck="false",
    )
    path = f"/accounts/{account.code}/allow"
    return _act(
        "Allowed IP",
        f"Calls from elsewhere are refused with 1020. You come from {address}.",
        form.write(path, field, button="Save addresses"),
    )


def _suspend(viewer: Viewer, account: Account) -> Html:
    active = account.state == "active"
    verb, state = ("Suspend", "suspended") if active else ("Resume", "active")
    return _act(
        "State",
        "Calls of a suspended account, and of all below it, are refused with 1010.",
        viewer.form("state").write(
            f"/accounts/{account.code}/state",
            tag("input", type="hidden", name="state", value=state),
            button=f"{verb} {account.name} and all below",
        ),
    )


def _token(viewer: Viewer, account: Account) -> Html:
    form = viewer.form("token")
    sure = tag("input", type="checkbox", name="sure", value="yes", required=True)
    return _act(
        "Token",
        "A new one is shown once, and the old one stops working at once.",
        form.write(
            f"/accounts/{account.code}/token",
            tag("label", sure, " The old token may stop working"),
            form.wrong("sure"),
            button="Issue another token",
        ),
    )


def _others(viewer: Viewer, one: Shown) -> Html:
    form = viewer.form("foreign")
    held = str(one.gauge.foreign)
    return _act(
        "Held by others",
        f"As if other programs with the same token held so many of the {one.limit}.",
        form.write(
            f"/accounts/{one.account.code}/foreign",
            form.field("held", "Calls", value=held, inputmode="numeric"),
            button="Hold",
        ),
    )


def _act(title: str, said: str, form: Html) -> Html:
    return tag("section", tag("h2", title), tag("p", said), form)


def moves(
    viewer: Viewer,
    account: Account,
    above: Sequence[Account],
    found: Sequence[Move],
    names: Mapping[int, str],
) -> Html:
    """Show moves of points, the newest first."""
    rows = [
        _parts.row(
            move.id,
            _parts.when(move.created),
            "minted" if move.source is None else names[move.source],
            names[move.target],
            _parts.number(move.amount),
            _parts.number(move.after(account.code)),
            move.reference,
        )
        for move in found[:PAGE]
    ]
    head = ("Move", "Time (UTC)", "From", "To", "#Amount", "#After", "Reference")
    last = found[PAGE - 1].id if len(found) > PAGE else None
    return _listed(viewer, account, above, "moves", head, rows, last)


def users(
    viewer: Viewer, account: Account, above: Sequence[Account], found: Sequence[User]
) -> Html:
    """Show users, the newest first."""
    rows = [
        _parts.row(user.code, user.name, _parts.number(user.balance))
        for user in found[:PAGE]
    ]
    last = found[PAGE - 1].code if len(found) > PAGE else None
    head = ("User", "Name", "#Balance")
    return _listed(viewer, account, above, "users", head, rows, last)


def feed(
    viewer: Viewer,
    account: Account,
    above: Sequence[Account],
    found: Sequence[tuple[Row, str]],
) -> Html:
    """Show transactions, each with the user's name, the newest first."""
    rows = [
        _parts.row(
            row.id,
            _parts.when(row.at),
            name,
            _KINDS[row.kind],
            _parts.number(row.before),
            _parts.number(row.amount),
            _parts.number(row.after),
            row.game,
        )
        for row, name in found[:PAGE]
    ]
    last = found[PAGE - 1][0].id if len(found) > PAGE else None
    head = ("Row", "Time (UTC)", "User", "Kind", "#Before", "#Amount", "#After", "Game")
    return _listed(viewer, account, above, "feed", head, rows, last)


def _listed(
    viewer: Viewer,
    account: Account,
    above: Sequence[Account],
    place: str,
    head: Sequence[str],
    rows: Sequence[Html],
    last: int | None,
) -> Html:
    table = _parts.table(_TABS[place], _parts.head(*head), rows)
    onward = None if last is None else urlencode({"before": last})
    return frame(
        account.name,
        viewer,
        _tabs(account, place, above),
        table if rows else tag("p", "Nothing yet."),
        _parts.more(f"/accounts/{account.code}/{place}", onward),
    )


def _tabs(account: Account, here: str, above: Sequence[Account]) -> Html:
    own = f"/accounts/{account.code}"
    way = [
        join(tag("a", one.name, href=f"/accounts/{one.code}"), " / ") for one in above
    ]
    links = [
        tag(
            "a",
            name,
            href=f"{own}/{place}" if place else own,
            aria_current="page" if place == here else None,
        )
        for place, name in _TABS.items()
    ]
    return join(
        tag("p", *way, account.name, class_="way"),
        tag("nav", *links, class_="tabs", aria_label=f"Of {account.name}"),
    )
