"""What the paths of accounts, points, users and wallets answer."""

from __future__ import annotations

from datetime import datetime

import attrs

from aio_agentapi.sandbox._arcade import Arcade
from aio_agentapi.sandbox._clock import Clock
from aio_agentapi.sandbox._forms import Forms, page
from aio_agentapi.sandbox._ledger import Ledger
from aio_agentapi.sandbox._members import Body
from aio_agentapi.sandbox._records import Account, RefusedCall
from aio_agentapi.sandbox._switches import Switches


@attrs.define(eq=False)
class Deployment:
    """
    What all endpoints share.

    Args:
        ledger: The books.

        clock: Tells the time.

        switches: How it behaves, until :meth:`switch`.
    """

    ledger: Ledger
    clock: Clock
    switches: Switches
    arcade: Arcade = attrs.field(init=False)
    # Where it can be reached, once it runs: links into games lead there.
    base_url: str = attrs.field(init=False, default="")
    # When each cursor of a feed was read, by account, path and last_id.
    read_at: dict[tuple[int, str, int], datetime] = attrs.field(
        init=False, factory=dict[tuple[int, str, int], datetime]
    )

    def __attrs_post_init__(self) -> None:
        self.arcade = Arcade(self.ledger)
        self.switch(self.switches)

    def switch(self, switches: Switches) -> None:
        """Behave as another deployment from now on."""
        self.switches = switches
        self.ledger.row_delay = switches.row_delay

    @property
    def forms(self) -> Forms:
        """How it writes its answers."""
        return Forms(self.switches)


@attrs.frozen
class Asked:
    """One call that was let in: whose, from where, and its members, checked."""

    caller: Account
    body: Body
    address: str | None


def agent_info(here: Deployment, asked: Asked) -> Body:
    """Answer ``agent/info``."""
    caller, forms = asked.caller, here.forms
    quoted = here.switches.quoted_currency
    answer = {
        "name": caller.name,
        "currency": str(caller.currency) if quoted else caller.currency,
        "balance": forms.money(caller.points),
    }
    if here.switches.told_codes:
        answer |= {
            "agent_code": caller.code,
            "role": caller.role,
            "parent_code": caller.parent,
            "state": caller.state,
        }
    if here.switches.generation == "older":
        return answer | {"win_ratio": 95}
    seen = forms.optional(whitelist=caller.whitelist, client_ip=asked.address)
    return answer | {"rtp": 95} | seen


def agent_create(here: Deployment, asked: Asked) -> Body:
    """Answer ``agent/create``."""
    body = asked.body
    account = here.ledger.create(
        asked.caller,
        body["name"],
        body["role"],
        body.get("parent_code"),
        body.get("whitelist") or (),
    )
    return here.forms.account(account) | {"token": account.token}


def agent_list(here: Deployment, asked: Asked) -> Body:
    """Answer ``agent/list``."""
    body = asked.body
    code = body.get("parent_code")
    parent = asked.caller if code is None else here.ledger.below(asked.caller, code)
    total, rows = here.ledger.children(
        parent,
        subtree=body.get("subtree") or False,
        offset=body["offset"],
        limit=body["limit"],
    )
    return page([here.forms.account(row) for row in rows], total, body["offset"])


def agent_update(here: Deployment, asked: Asked) -> Body:
    """Answer ``agent/update``."""
    body = asked.body
    account = here.ledger.below(asked.caller, body["agent_code"])
    changed = here.ledger.update(account, body.get("state"), body.get("whitelist"))
    return here.forms.account(changed)


def agent_token(here: Deployment, asked: Asked) -> Body:
    """Answer ``agent/token``."""
    account = here.ledger.below(asked.caller, asked.body["agent_code"])
    return {"token": here.ledger.reissue_token(account)}


def _amount(here: Deployment, asked: Asked) -> int:
    """Return the amount of a call, as the deployment keeps it."""
    step = 10 ** (4 - here.switches.decimals)
    kept: int = (asked.body["amount"] + step // 2) // step * step
    if not kept:
        raise RefusedCall(1002, amount="too small")
    return kept


def points_transfer(here: Deployment, asked: Asked) -> Body:
    """Answer ``points/transfer``."""
    body, amount = asked.body, _amount(here, asked)
    move = here.ledger.transfer(
        asked.caller, body["agent_code"], amount, body.get("reference")
    )
    return here.forms.point_move(move, asked.caller)


def points_reclaim(here: Deployment, asked: Asked) -> Body:
    """Answer ``points/reclaim``."""
    body, amount = asked.body, _amount(here, asked)
    move = here.ledger.reclaim(
        asked.caller, body["agent_code"], amount, body.get("reference")
    )
    return here.forms.point_move(move, asked.caller)


def points_history(here: Deployment, asked: Asked) -> list[Body]:
    """Answer ``points/history``."""
    body = asked.body
    moves = here.ledger.history(asked.caller, body["last_id"], body["limit"])
    return [here.forms.point_move(move, asked.caller) for move in moves]


def user_create(here: Deployment, asked: Asked) -> Body:
    """Answer ``user/create``."""
    user, is_new = here.ledger.create_user(asked.caller, asked.body["name"])
    return {"user_code": user.code} | here.forms.optional(is_new_user=is_new)


def user_info(here: Deployment, asked: Asked) -> Body:
    """Answer ``user/info``."""
    user = here.ledger.user(asked.caller, asked.body["user_code"])
    return {"name": user.name, "balance": here.forms.money(user.balance)}


def wallet_deposit(here: Deployment, asked: Asked) -> Body:
    """Answer ``wallet/deposit``."""
    amount = _amount(here, asked)
    user = here.ledger.deposit(asked.caller, asked.body["user_code"], amount)
    return here.forms.moved(user, amount)


def wallet_withdraw(here: Deployment, asked: Asked) -> Body:
    """Answer ``wallet/withdraw``."""
    amount = _amount(here, asked)
    user = here.ledger.withdraw(asked.caller, asked.body["user_code"], amount)
    return here.forms.moved(user, amount)


def wallet_withdraw_all(here: Deployment, asked: Asked) -> Body:
    """Answer ``wallet/withdraw-all``."""
    user = here.ledger.user(asked.caller, asked.body["user_code"])
    if user.balance == 0 and here.switches.empty_wallet == "zero":
        return here.forms.moved(user, 0)
    # An empty one is refused by an amount that it does not have.
    amount = user.balance or 1
    emptied = here.ledger.withdraw(asked.caller, user.code, amount)
    return here.forms.moved(emptied, amount)
