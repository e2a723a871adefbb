"""Open Optuna's storage, show its URL without the password, and explain its errors in one line."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufy import installed
from ggufy.errors import MissingExtra, SweepError

if TYPE_CHECKING:
    import optuna


def check_installed() -> None:
    """Raise MissingExtra where Optuna is not there, without importing it."""
    if find_spec("optuna") is None:
        raise MissingExtra("ggufy sweep", "sweep", "optuna")


def open_at(url: str) -> optuna.storages.RDBStorage:
    """The storage at a URL; its tables are made where they are not there."""
    import optuna
    import sqlalchemy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options: Mapping[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": 60}}
        _make_whole(url, options)
    for attempt in range(3):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=dict(options))
        except sqlalchemy.exc.SQLAlchemyError as error:
            # Two that begin at once make the same tables and rows.
            clash = isinstance(error, sqlalchemy.exc.IntegrityError) or "already exists" in str(error)
            if not clash or attempt == 2:
                raise
            time.sleep(0.5)
    raise AssertionError


def _make_whole(url: str, options: Mapping[str, Any]) -> None:
    """Make an SQLite file with all its tables and indices at once, where there is none.

    SQLite commits each table and index alone. A process killed between `studies` and its unique index leaves a file
    that takes a name twice, and nothing makes up for an index that is missing beside a table.
    """
    import optuna
    from sqlalchemy.engine import make_url

    database = make_url(url).database
    if database in (None, "", ":memory:") or str(database).startswith("file:") or os.path.lexists(str(database)):
        return
    path = Path(str(database))
    # Without hard links, or in a folder that cannot be written to: opening it goes on as ever, and says what is wrong.
    with suppress(OSError), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        whole = Path(folder) / path.name
        at = make_url(url).set(database=whole.as_posix()).render_as_string(hide_password=False)
        optuna.storages.RDBStorage(at, engine_kwargs=dict(options)).engine.dispose()
        # Of two that begin at once, the first makes it.
        os.link(whole, path)


def masked(url: str) -> str:
    """A URL without its password, for people and files."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return str(make_url(url).render_as_string(hide_password=True))
    except ArgumentError:
        raise SweepError(
            f"--storage {url.partition(':')[0]}...: this is not a storage URL of Optuna",
            "for example sqlite:////shared/study.db or postgresql://user@host/name",
        ) from None


def lock_of(url: str) -> Path | None:
    """What to lock around a look and a change, where the storage itself does not: SQLite has no row that is locked.

    Raises SweepError for a storage in memory.
    """
    from sqlalchemy.engine import make_url

    found = make_url(url)
    if found.get_backend_name() != "sqlite":
        return None
    if found.database in (None, "", ":memory:"):
        raise SweepError(
            f"--storage {url}: it would be lost at the end of this process", "name a file: sqlite:////shared/study.db"
        )
    return Path(f"{found.database}.lock")


@contextmanager
def explained(shown_url: str, *, local: bool) -> Iterator[None]:
    """What a storage cannot do is a SweepError in one line. A `local` one is ggufy's own file."""
    import optuna
    import sqlalchemy

    internal = optuna.exceptions.StorageInternalError
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, internal, ImportError, RuntimeError) as error:
        said = error.__cause__ if isinstance(error, internal) else error
        text = " ".join(str(said or error).split("\n")[0].split())[:300]
        hint = "check the URL and that its server can be reached; then run the same command again"
        if isinstance(error, ImportError):
            hint = f"install the driver that the URL names, such as `{installed.command_for('psycopg2-binary')}` for postgresql://"
        if local:
            hint = "free some space; if the file is damaged, give --name NAME to start another sweep"
        raise SweepError(f"the storage {shown_url} cannot be used: {text}", hint) from error
