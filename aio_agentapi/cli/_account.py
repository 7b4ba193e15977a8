"""Where the command line gets the service's address and the token from."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import attrs
import platformdirs

from aio_agentapi import Secret, Settings
from aio_agentapi._identity import Claim, spelled
from aio_agentapi.errors import UsageError

# What the table of the shared gate may have.
_GATE: Final = frozenset({"url", "lease", "heartbeat", "quarantine", "static_share"})


@attrs.frozen(kw_only=True)
class Place:
    """
    A service, a token of it, and how to speak to it.

    Attributes:
        base_url: Of the service.

        token: Whose account.

        settings: How to speak to it.

        name: What the configuration file calls the account, and so the journal.
            None: it was not named.

        journal: Where its payments are written down. None: nowhere.

        gate: The store of a budget that it shares with other programs, and the
            terms of that, as :meth:`RedisGate.factory` takes them. None: none.
    """

    base_url: str
    token: Secret
    settings: Settings
    name: str | None = None
    journal: Path | None = None
    gate: Mapping[str, Any] | None = None

    @property
    def claim(self) -> Claim:
        """What a session of it says of itself to the journal."""
        names = () if self.name is None else (self.name,)
        return Claim(names=names, token=self.token.digest, url=spelled(self.base_url))


@attrs.frozen(kw_only=True)
class Draft:
    """
    A place as it is said, its token not looked at yet: the doctor does that.

    Attributes: as those of :class:`Place`.
    """

    base_url: str
    token: str = attrs.field(repr=False)
    settings: Settings
    name: str | None = None
    journal: Path | None = None
    gate: Mapping[str, Any] | None = attrs.field(default=None, repr=False)

    def place(self) -> Place:
        """
        Return the place.

        Raises:
            UsageError: The token has characters that none has. Nothing was sent.
        """
        told: dict[str, Any] = attrs.asdict(self, recurse=False)
        told["token"] = Secret(self.token)
        return Place(**told)


def default_config() -> Path:
    """Return where the configuration file is looked for."""
    return platformdirs.user_config_path("agentapi") / "config.toml"


def find(account: str | None, config: Path | None, env: Mapping[str, str]) -> Draft:
    """
    Return what is said of the account that a command is to use.

    Raises:
        UsageError: It is not said, or not in full. Nothing was sent.
    """
    file = _read(config)
    settings = _settings(file)
    gate = _gate(file, env)
    journal = _journal("journal", file, config)
    if account is not None:
        entry = _entry(account, file)
        own = _journal(f"accounts.{account}.journal", entry, config)
        return Draft(
            base_url=_base_url(account, entry, file),
            token=_token(account, entry, env),
            settings=settings,
            name=account,
            journal=own or journal,
            gate=gate,
        )
    base_url = env.get("AGENTAPI_BASE_URL") or file.get("base_url")
    token = env.get("AGENTAPI_TOKEN")
    if not base_url or not token:
        raise _no_account(base_url, token, config, env)
    if not isinstance(base_url, str):
        msg = "base_url: in the configuration file, a text in quotes"
        raise UsageError(msg)
    return Draft(
        base_url=base_url,
        token=token,
        settings=settings,
        journal=journal,
        gate=gate,
    )


def _no_account(
    base_url: str | None,
    token: str | None,
    config: Path | None,
    env: Mapping[str, str],
) -> UsageError:
    """Return which part of an account is missing, and where it is looked for."""
    found = {"AGENTAPI_BASE_URL": base_url, "AGENTAPI_TOKEN": token}
    missing = [name for name, value in found.items() if not value]
    file = config or default_config()
    return UsageError(
        f"no account: {', and '.join(f'{n} is {_lack(n, env)}' for n in missing)}. Set"
        f" {' and '.join(missing)}, or name an account of the configuration file"
        f" ({file}) with --account"
    )


def _lack(name: str, env: Mapping[str, str]) -> str:
    return "empty" if name in env else "not set"


def _read(config: Path | None) -> dict[str, Any]:
    path = config or default_config()
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if config is None:
            return {}
        msg = f"{path}: there is no such file"
        raise UsageError(msg) from None
    except (OSError, ValueError) as error:
        msg = f"{path}: {error}"
        raise UsageError(msg) from None


def _settings(file: Mapping[str, Any]) -> Settings:
    wanted = _table(file.get("settings", {}))
    known = {field.name for field in attrs.fields(Settings)} - {"ssl"}
    if wanted is None or wanted.keys() - known:
        msg = f"[settings]: a table with some of {', '.join(sorted(known))}"
        raise UsageError(msg)
    return Settings(**wanted)


def _gate(file: Mapping[str, Any], env: Mapping[str, str]) -> Mapping[str, Any] | None:
    wanted = _table(file.get("gate", {}))
    if wanted is None or wanted.keys() - _GATE:
        msg = f"[gate]: a table with some of {', '.join(sorted(_GATE))}"
        raise UsageError(msg)
    if url := env.get("AGENTAPI_REDIS_URL"):
        wanted = {**wanted, "url": url}
    if wanted and not isinstance(wanted.get("url"), str):
        msg = "[gate]: needs a url"
        raise UsageError(msg)
    return wanted or None


def _entry(account: str, file: Mapping[str, Any]) -> dict[str, Any]:
    accounts = _table(file.get("accounts", {})) or {}
    entry = _table(accounts.get(account))
    if entry is None:
        # Without the name: it may be a token.
        names = ", ".join(sorted(accounts)) or "none"
        msg = f"--account: not in the configuration file, which has: {names}"
        raise UsageError(msg)
    return entry


def _base_url(account: str, entry: Mapping[str, Any], file: Mapping[str, Any]) -> str:
    base_url = entry.get("base_url") or file.get("base_url")
    if not isinstance(base_url, str):
        msg = f"accounts.{account}: needs a base_url"
        raise UsageError(msg)
    return base_url


def _journal(place: str, table: Mapping[str, Any], config: Path | None) -> Path | None:
    name = table.get("journal")
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        msg = f"{place}: the path of a file"
        raise UsageError(msg)
    # The same file from every folder: another one would know nothing of a key.
    return (config or default_config()).absolute().parent / _home(name)


def _home(name: str) -> str:
    return os.path.expanduser(name)  # noqa: PTH111 - keeps a name without ~ as it is


def _table(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _token(account: str, entry: Mapping[str, Any], env: Mapping[str, str]) -> str:
    if "token" in entry:
        msg = (
            f"accounts.{account}: the token does not belong into this file; name an"
            " environment variable (token_env) or a file of its own (token_file)"
        )
        raise UsageError(msg)
    if isinstance(name := entry.get("token_env"), str):
        if not env.get(name):
            msg = f"accounts.{account}: the environment variable {name} is not set"
            raise UsageError(msg)
        return env[name]
    if isinstance(name := entry.get("token_file"), str):
        try:
            text = Path(_home(name)).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"accounts.{account}: token_file: {error}"
            raise UsageError(msg) from None
        return text.strip()
    msg = f"accounts.{account}: needs token_env or token_file"
    raise UsageError(msg)
