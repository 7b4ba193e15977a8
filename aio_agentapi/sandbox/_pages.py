"""The back office's pages: the frame of each, the tree, login, switches and faults."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from typing import Any, Final, get_args, get_type_hints
from urllib.parse import urlencode

import attrs

from aio_agentapi.sandbox import _parts
from aio_agentapi.sandbox._faults import KINDS, Fault
from aio_agentapi.sandbox._forms import digits
from aio_agentapi.sandbox._lookup import PAGE
from aio_agentapi.sandbox._markup import Html, Part, join, tag
from aio_agentapi.sandbox._parts import Form, Typed
from aio_agentapi.sandbox._records import Account
from aio_agentapi.sandbox._routes import ROUTES
from aio_agentapi.sandbox._service import Gauge
from aio_agentapi.sandbox._switches import Switches

# How far the names of a tree are moved in at most.
_DEEPEST: Final = 8


@attrs.frozen
class Note:
    """What a page says once: what was done, and perhaps a token."""

    text: str
    secret: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class Viewer:
    """
    Who looks at the pages.

    Attributes:
        account: Whose login it is, and the top of what he sees. None: the owner of
            the stand-in, who sees all.

        note: What the page says once.

        typed: What he typed, where it cannot be accepted.
    """

    account: Account | None = None
    note: Note | None = None
    typed: Typed | None = None

    def form(self, name: str) -> Form:
        """Return what writes a form for him."""
        return Form(name, self.typed)

    def is_(self, account: Account) -> bool:
        """Tell whether an account is his own."""
        return self.account is not None and self.account.code == account.code

    def sees(self, account: Account) -> bool:
        """Tell whether an account is his, or below it."""
        return self.account is None or self.account.code in account.lineage


@attrs.frozen(kw_only=True)
class Shown:
    """An account with what the books do not say of it."""

    account: Account
    gauge: Gauge
    limit: int
    suspended: bool

    @property
    def live(self) -> dict[str, Part]:
        """What changes while somebody looks."""
        gauge = self.gauge
        others = f" (others: {gauge.foreign})" if gauge.foreign else ""
        held = gauge.in_flight + gauge.foreign
        return {
            "value": held,
            "max": self.limit,
            "calls": f"{held} of {self.limit}{others}",
            "peak": gauge.peak,
            "busy": gauge.busy,
        }

    def calls(self) -> Html:
        """Write the gauge."""
        live = self.live
        meter = tag(
            "meter",
            min=0,
            max=live["max"],
            value=live["value"],
            aria_label=f"Calls of {self.account.name} in flight",
        )
        return join(meter, self.told("calls"))

    def told(self, what: str) -> Html:
        """Write one of what changes."""
        return tag("span", self.live[what], data_live=what)

    def state(self) -> Html:
        """Write whether its calls are accepted."""
        if self.account.state != "active":
            return tag("span", "suspended", class_="bad")
        if self.suspended:
            return tag("span", "suspended above", class_="bad")
        return tag("span", "active", class_="good")


def frame(title: str, viewer: Viewer | None, *content: Part) -> Html:
    """Put a page into its frame; without a viewer, there is nowhere to go."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · Stand-in"),
        tag("link", rel="icon", href="data:,"),
        tag("link", rel="stylesheet", href="/office/style.css"),
        tag("script", src="/office/script.js", defer=True),
    )
    note = _noted(viewer.note) if viewer and viewer.note else None
    body = tag(
        "body",
        tag("a", "To the content", href="#content", class_="skip"),
        tag("header", tag("strong", "Stand-in back office"), _places(viewer)),
        tag("main", note, tag("h1", title), *content, id="content", tabindex="-1"),
    )
    return join(Html("<!doctype html>\n"), tag("html", head, body, lang="en"))


def _places(viewer: Viewer | None) -> Html | None:
    if viewer is None:
        return None
    if viewer.account is None:
        last = tag("a", "Switches and faults", href="/service")
    else:
        name = viewer.account.name
        last = viewer.form("logout").write("/logout", button=f"Log out {name}")
    accounts = tag("a", "Accounts", href="/")
    return tag("nav", accounts, last, aria_label="The back office")


def _noted(note: Note) -> Html:
    secret = note.secret and tag("code", note.secret, class_="secret")
    # With the focus, so that it is read out where pages are.
    options: dict[str, Part] = {"tabindex": "-1", "autofocus": True}
    return tag("p", note.text, secret, role="status", class_="note", **options)


def refused(title: str, text: str, viewer: Viewer | None = None) -> Html:
    """Say that there is nothing to see."""
    return frame(title, viewer, tag("p", text, role="alert"))


def login(typed: Typed | None) -> Html:
    """Ask who it is."""
    form = Form("login", typed)
    fields = (
        form.field("account", "Account", autocomplete="username"),
        form.field("token", "Token", type="password", autocomplete="current-password"),
    )
    return frame(
        "Log in",
        None,
        tag("p", "With the name or the code of an account, and its token."),
        form.write("/login", *fields, button="Log in"),
    )


def tree(
    viewer: Viewer, shown: Sequence[Shown], *, words: str, offset: int, more: bool
) -> Html:
    """Show accounts, parents before their children."""
    field = tag("input", name="find", value=words, type="search")
    find = tag(
        "form",
        tag("label", "Name has ", field),
        tag("button", "Find"),
        class_="line",
        role="search",
    )
    head = [
        tag("th", "Account", scope="col"),
        tag("th", "Role", scope="col", class_="wide"),
        tag("th", "Points", scope="col", class_="number"),
        tag("th", "State", scope="col", class_="wide"),
        tag("th", "Calls in flight", scope="col"),
        tag("th", "1018", scope="col", class_="wide number", title="Refused: too many"),
    ]
    table = _parts.table("Accounts", head, [_branch(one) for one in shown])
    onward = urlencode({"find": words, "offset": offset + PAGE}) if more else None
    found = table if shown else tag("p", "None found.")
    return frame("Accounts", viewer, find, found, _parts.more("/", onward))


def _branch(one: Shown) -> Html:
    account, busy = one.account, one.told("busy")
    name = tag(
        "th",
        tag("span", f"level {account.depth + 1} ", class_="unseen"),
        tag("a", account.name, href=f"/accounts/{account.code}"),
        scope="row",
        class_=f"depth-{min(account.depth, _DEEPEST)}",
    )
    return tag(
        "tr",
        name,
        tag("td", account.role, class_="wide"),
        tag("td", digits(account.points), _narrow(one.state()), class_="number"),
        tag("td", one.state(), class_="wide"),
        tag("td", one.calls(), _narrow("1018: ", busy), data_gauge=account.code),
        tag("td", busy, class_="wide number", data_gauge=account.code),
    )


def _narrow(*parts: Part) -> Html:
    """Write a column again, for where it is left out."""
    return tag("small", *parts, class_="narrow")


def service(viewer: Viewer, switches: Switches, faults: Iterable[Fault]) -> Html:
    """Show how the deployment behaves, and what goes wrong."""
    on = [tag("li", _told(fault)) for fault in faults]
    clear = viewer.form("clear").write("/service/clear", button="Turn all faults off")
    form = viewer.form("switches")
    chosen = [_switch(form, switches, name) for name in switch_kinds()]
    return frame(
        "Switches and faults",
        viewer,
        tag(
            "section",
            tag("h2", "Faults that are on"),
            tag("ul", *on) if on else tag("p", "None."),
            clear if on else None,
        ),
        tag("section", tag("h2", "Turn a fault on"), _fault(viewer.form("fault"))),
        tag(
            "section",
            tag("h2", "Switches"),
            form.write(
                "/service/switches",
                tag("div", *chosen, class_="fields"),
                button="Set the switches",
            ),
        ),
    )


def _fault(form: Form) -> Html:
    paths = {"": "all calls", **{path: path for path in ROUTES}}
    executed = {"": "as is usual for it", "yes": "yes", "no": "no"}
    return form.write(
        "/service/fault",
        tag(
            "div",
            form.choice("kind", "Kind", {kind: kind for kind in KINDS}),
            form.choice("path", "Of", paths),
            form.field("times", "Times", hint="Blank: until turned off."),
            form.field("share", "Share", value="1", hint="0 to 1."),
            form.field("seconds", "Seconds", value="0"),
            form.field("status", "HTTP status", hint="Blank: the usual one."),
            form.field("code", "Code", value="1001"),
            form.choice("executed", "Executed", executed),
            class_="fields",
        ),
        button="Turn on",
    )


def _told(fault: Fault) -> str:
    """Say what a fault does, but for what is usual."""
    usual = Fault(fault.kind)
    more = [
        f"{field.name} {getattr(fault, field.name)}"
        for field in attrs.fields(Fault)
        if field.name not in {"kind", "path"}
        and getattr(fault, field.name) != getattr(usual, field.name)
    ]
    return ", ".join([f"{fault.kind} of {fault.path or 'all calls'}", *more])


@cache
def switch_kinds() -> Mapping[str, Any]:
    """Return the type of each switch."""
    hints = get_type_hints(Switches)
    return {field.name: hints[field.name] for field in attrs.fields(Switches)}


@cache
def _meanings() -> Mapping[str, str]:
    """Return what the docstring says of each switch."""
    text = inspect.getdoc(Switches) or ""
    found = re.findall(r"^    (\w+): (.*?)(?=\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return {name: " ".join(said.replace("`", "").split()) for name, said in found}


def _switch(form: Form, switches: Switches, name: str) -> Html:
    kind, value = switch_kinds()[name], str(getattr(switches, name))
    hint = _meanings().get(name, "")
    words = (False, True) if kind is bool else get_args(kind)
    if words:
        options = {str(word): str(word) for word in words}
        return form.choice(name, name, options, value=value, hint=hint)
    if kind is float:
        # 1e-05 is not how it is typed.
        value = f"{Decimal(value):f}"
    return form.field(name, name, value=value, hint=hint)
