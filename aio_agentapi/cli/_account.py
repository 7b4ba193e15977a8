"""Where the command line gets the service's address and the token from."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import platformdirs

from aio_agentapi import Secret, Settings
from aio_agentapi.errors import UsageError


@attrs.frozen(kw_only=True)
class Place:
    """A service, a token of it, and how to speak to it."""

    base_url: str
    token: Secret
    settings: Settings


def default_config() -> Path:
    """Return where the configuration file is looked for."""
    return platformdirs.user_config_path("agentapi") / "config.toml"


def find(account: str | None, config: Path | None, env: Mapping[str, str]) -> Place:
    """
    Return the account that a command is to use.

    Raises:
        UsageError: It is not said, or not in full. Nothing was sent.
    """
    file = _read(config)
    settings = _settings(file)
    if account is not None:
        return _named(account, file, env, settings)
    base_url = env.get("AGENTAPI_BASE_URL") or file.get("base_url")
    token = env.get("AGENTAPI_TOKEN")
    if not base_url or not token:
        msg = (
            "no account: set AGENTAPI_BASE_URL and AGENTAPI_TOKEN, or name one of"
            f" the configuration file ({config or default_config()}) with --account"
        )
        raise UsageError(msg)
    return Place(base_url=base_url, token=Secret(token), settings=settings)


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


def _named(
    account: str, file: Mapping[str, Any], env: Mapping[str, str], settings: Settings
) -> Place:
    accounts = _table(file.get("accounts", {})) or {}
    entry = _table(accounts.get(account))
    if entry is None:
        # Without the name: it may be a token.
        names = ", ".join(sorted(accounts)) or "none"
        msg = f"--account: not in the configuration file, which has: {names}"
        raise UsageError(msg)
    base_url = entry.get("base_url") or file.get("base_url")
    if not isinstance(base_url, str):
        msg = f"accounts.{account}: needs a base_url"
        raise UsageError(msg)
    return Place(
        base_url=base_url, token=_token(account, entry, env), settings=settings
    )


def _table(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _token(account: str, entry: Mapping[str, Any], env: Mapping[str, str]) -> Secret:
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
        return Secret(env[name])
    if isinstance(name := entry.get("token_file"), str):
        try:
            text = Path(os.path.expanduser(name)).read_text("utf-8")  # noqa: PTH111 - keeps a name without ~ as it is
        except (OSError, UnicodeDecodeError) as error:
            msg = f"accounts.{account}: token_file: {error}"
            raise UsageError(msg) from None
        return Secret(text.strip())
    msg = f"accounts.{account}: needs token_env or token_file"
    raise UsageError(msg)
