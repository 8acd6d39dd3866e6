"""The votes of a study, in SQLite or PostgreSQL: who is asked what, and what they answered.

Of a rater nothing is kept but a number, the hash of a token, and the times at which they came. A vote is one UPDATE
that asks by itself whether the trial is still open, so that a double click, a replay, a late or a concurrent vote
changes nothing, on either database. A unique index lets no comparison of the design be open or answered twice.
"""

import contextlib
import csv
import getpass
import hashlib
import io
import json
import os
import random
import secrets
import ssl
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import numpy as np

from veridical.core.catalog import require
from veridical.core.errors import DataError
from veridical.study.active import next_pair
from veridical.study.design import (
    ACTIVE,
    OBVIOUS,
    REFERENCE,
    Comparison,
    Design,
    as_json,
    from_json,
    load_design,
    study_folder,
)
from veridical.study.votes import COLUMNS

try:
    import sqlalchemy as sa
except ImportError:
    require("sqlalchemy", "study", "a preference study")  # says which extra to install
    raise

HOLD = timedelta(hours=1)
"""For how long nobody else gets the trials of a rater who has gone away."""

_WAIT_S = 30  # for the lock of another writer
_metadata = sa.MetaData()
_study = sa.Table(
    "veridical_study",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("design", sa.Text, nullable=False),
    sa.Column("closed", sa.String(40)),
)
_slots = sa.Table(  # the comparisons of the design, each of which wants one vote; in the order of handing out
    "veridical_slots",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("image", sa.Integer, nullable=False),
    sa.Column("left", sa.Integer, nullable=False),
    sa.Column("right", sa.Integer, nullable=False),
)
_raters = sa.Table(
    "veridical_raters",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("began", sa.String(40), nullable=False),
    sa.Column("seen", sa.String(40), nullable=False),
)
_trials = sa.Table(  # what one rater is asked, and the answer
    "veridical_trials",
    _metadata,
    sa.Column("id", sa.String(22), primary_key=True),
    sa.Column("rater", sa.Integer, sa.ForeignKey(_raters.c.id), nullable=False, index=True),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("slot", sa.Integer, sa.ForeignKey(_slots.c.id)),  # none of a screening trial
    sa.Column("image", sa.Integer, nullable=False),
    sa.Column("left", sa.Integer),
    sa.Column("right", sa.Integer),
    sa.Column("screening", sa.Integer, nullable=False),  # the side that is obviously better, or 0
    sa.Column("choice", sa.Integer, sa.CheckConstraint("choice IN (1, 2)")),
    sa.Column("seconds", sa.Float),
    sa.Column("at", sa.String(40)),
    sa.Column("withdrawn", sa.String(40)),
)
_living = _trials.c.withdrawn.is_(None)
_open = _living & _trials.c.choice.is_(None)
sa.Index("veridical_one_trial", _trials.c.slot, unique=True, sqlite_where=_living, postgresql_where=_living)


class Outcome(StrEnum):
    """What became of a vote."""

    RECORDED = "recorded"
    SAME = "same"  # it was recorded before: a double click, a replay, an answer that was lost on its way back
    KEPT = "kept"  # another answer was recorded before, and stays
    LATE = "late"  # the trial was given to somebody else meanwhile
    CLOSED = "closed"  # the study is over
    UNKNOWN = "unknown"  # this rater has no such trial


class _NothingLeft(Exception):
    """Undoes the transaction that made a rater whom nothing can be asked."""


@dataclass(frozen=True)
class NewRater:
    """A rater who has just begun. token: known to them alone, stored nowhere."""

    number: int
    token: str


@dataclass(frozen=True)
class View:
    """Where a rater stands. trials: the ids of those not answered yet, in order. closed: the study is over."""

    rater: str
    done: int
    total: int
    trials: tuple[str, ...]
    closed: bool


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    votes: ordinary ones, of `wanted`. fewest, most: votes of a pair of methods.
    raters: who voted. finished: of those, who have answered all they were asked.
    """

    votes: int
    wanted: int
    fewest: int
    most: int
    raters: int
    finished: int
    closed: bool


def open_store(folder: Path, url: str | None = None) -> "Store":
    """The votes of a study or of a run that has one; the database is made ready when it is new.

    Args:   url: such as postgresql://user@host/name; study.sqlite in the study's folder by default.
    Errors: DataError when there is no study, the database cannot be reached, or has the votes of another.
    """
    return Store(_engine(url or _sqlite(study_folder(folder))), load_design(folder))


def _sqlite(place: Path) -> str:
    return f"sqlite:///{place / 'study.sqlite'}"


def _engine(url: str) -> sa.Engine:
    try:
        address = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise DataError("the database's URL cannot be read. Expected such as postgresql://user@host/name.") from error
    kind = address.get_backend_name()
    if kind == "postgresql":
        require("pg8000", "study", "PostgreSQL")
        return sa.create_engine(
            sa.URL.create("postgresql+pg8000", database=address.database),
            connect_args=_pg8000(address),
            pool_size=10,
            max_overflow=10,
            pool_pre_ping=True,
        )
    if kind != "sqlite":
        raise DataError(f"the database is {kind!r}. Expected postgresql://user@host/name, or none for SQLite.")
    engine = sa.create_engine(address, connect_args={"timeout": _WAIT_S}, pool_size=10, max_overflow=40)

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where Python's sqlite3 thinks
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a committed vote survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A writer takes the lock at once: one that reads first and is then refused the lock could not wait for it.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


_SSL_MODES: dict[str, bool | None] = {"disable": False, "allow": None, "prefer": None, "require": True}
_VERIFYING = ("verify-ca", "verify-full")


def _pg8000(address: sa.URL) -> dict[str, Any]:
    """The arguments of pg8000 for an address as libpq, PostgreSQL's own client, reads it.

    Errors: DataError when it has a parameter that is not known here.
    """
    query = {name: value if isinstance(value, str) else value[-1] for name, value in address.query.items()}
    host = query.pop("host", address.host) or ("/var/run/postgresql" if Path("/var/run/postgresql").is_dir() else None)
    port = int(query.pop("port", address.port or 5432))
    arguments: dict[str, Any] = {
        "user": address.username or os.environ.get("PGUSER") or getpass.getuser(),
        "password": address.password or os.environ.get("PGPASSWORD"),
        "port": port,
    }
    if host and host.startswith("/"):
        arguments["unix_sock"] = f"{host}/.s.PGSQL.{port}"
    elif host:
        arguments["host"] = host
    authorities, mode = query.pop("sslrootcert", None), query.pop("sslmode", "prefer")
    if mode in _VERIFYING or (mode == "require" and authorities):  # a given authority is checked, as libpq does
        arguments["ssl_context"] = ssl.create_default_context(cafile=authorities)
        arguments["ssl_context"].check_hostname = mode == "verify-full"
    elif mode in _SSL_MODES:
        arguments["ssl_context"] = _SSL_MODES[mode]
    else:
        raise DataError(f"sslmode is {mode!r}. Expected one of {', '.join((*_SSL_MODES, *_VERIFYING))}.")
    if "options" in query:
        arguments["startup_params"] = {"options": query.pop("options")}
    if query:
        raise DataError(
            f"the database's URL has {', '.join(map(repr, query))}. Of PostgreSQL's parameters host, port, options, "
            "sslmode and sslrootcert are known here."
        )
    return arguments


class Store:
    """The database of one study. Its methods may be called from many threads and several processes at once."""

    def __init__(self, engine: sa.Engine, design: Design) -> None:
        self.design = design
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        # SQLite has one writer at a time, and lets the others try again after ever longer naps; here they queue.
        self._turn = threading.Lock() if engine.dialect.name == "sqlite" else contextlib.nullcontext()
        try:
            with self._writing() as connection:
                self._make(connection)
        except sa.exc.DBAPIError as error:
            self.dispose()
            raise DataError(f"the database of the study cannot be used: {error.orig}") from error
        except DataError:
            self.dispose()
            raise

    def _make(self, connection: sa.Connection) -> None:
        if connection.dialect.name == "postgresql":  # of two servers that start at once, one makes the tables
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7233684)"))
        _metadata.create_all(connection)
        found = connection.execute(sa.select(_study.c.digest)).scalar()
        if found is None:
            values = {"id": 1, "digest": digest(self.design), "design": json.dumps(as_json(self.design))}
            connection.execute(_study.insert().values(values))
            slots = [{"image": c.image, "left": c.left, "right": c.right} for c in self.design.comparisons]
            if slots:
                connection.execute(_slots.insert(), slots)
        elif found != digest(self.design):
            raise DataError("the database holds the votes of another study. Use a database of its own for each study.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.dispose()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._turn, self._writer.begin() as connection:
            yield connection

    def dispose(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # ---- raters ----

    def begin(self) -> NewRater | None:
        """A new rater with a set of trials; None when nothing is left to ask."""
        token = secrets.token_urlsafe(32)
        now = _now()
        new = _raters.insert().values(token_hash=_hash(token), began=now, seen=now).returning(_raters.c.id)
        try:
            with self._writing() as connection:
                number = connection.execute(new).scalar_one()
                if not self._give(connection, number):
                    raise _NothingLeft
        except _NothingLeft:
            return None
        return NewRater(number, token)

    def more(self, rater: int) -> bool:
        """Another set of trials for a rater who has answered all; False when there is nothing left to ask of them."""
        with self._writing() as connection:
            waiting = sa.select(sa.func.count()).where(_trials.c.rater == rater, _open)
            return connection.execute(waiting).scalar_one() > 0 or self._give(connection, rater)

    def rater_of(self, token: str) -> int | None:
        """The number of the rater who has this token, or None."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(_raters.c.id).where(_raters.c.token_hash == _hash(token))).scalar()

    def view(self, rater: int) -> View:
        """Where a rater stands."""
        with self._engine.connect() as connection:
            trials = connection.execute(
                sa.select(_trials.c.id, _trials.c.choice)
                .where(_trials.c.rater == rater, _living)
                .order_by(_trials.c.place)
            ).all()
            closed = connection.execute(sa.select(_study.c.closed)).scalar() is not None
        waiting = tuple(trial.id for trial in trials if trial.choice is None)
        return View(_name(rater), len(trials) - len(waiting), len(trials), () if closed else waiting, closed)

    def file(self, rater: int, trial: str, what: str) -> str | None:
        """The file inside images/ of "reference", "left" or "right" of a trial; None when it is not this rater's."""
        with self._engine.connect() as connection:
            found = connection.execute(
                sa.select(_trials).where(_trials.c.id == trial, _trials.c.rater == rater)
            ).first()
        if found is None or what not in ("reference", "left", "right"):
            return None
        files = self.design.files[found.image]
        return files[REFERENCE] if what == "reference" else files[_shown(found)[what == "right"]]

    # ---- votes ----

    def vote(self, rater: int, trial: str, choice: int, seconds: float) -> Outcome:
        """Write a vote, once; it is on the disk when this returns. choice: 1 is the left image, 2 the right one."""
        now = _now()
        over = sa.exists().where(_study.c.closed.is_not(None))
        mine = (_trials.c.id == trial) & (_trials.c.rater == rater)
        with self._writing() as connection:
            written = connection.execute(
                _trials.update().where(mine, _open, ~over).values(choice=choice, seconds=round(seconds, 3), at=now)
            )
            if written.rowcount == 1:
                connection.execute(_raters.update().where(_raters.c.id == rater).values(seen=now))
                return Outcome.RECORDED
            found = connection.execute(sa.select(_trials.c.choice, _trials.c.withdrawn).where(mine)).first()
        if found is None:
            return Outcome.UNKNOWN
        if found.choice is not None:
            return Outcome.SAME if found.choice == choice else Outcome.KEPT
        return Outcome.LATE if found.withdrawn is not None else Outcome.CLOSED

    def forget(self, rater: str) -> int:
        """Delete a rater, such as "r007", and all they answered; how many answers there were. Others are asked instead.

        Errors: DataError when there is no such rater.
        """
        number = int(rater[1:]) if rater[:1] == "r" and rater[1:].isdecimal() else 0
        with self._writing() as connection:
            answered = sa.select(sa.func.count()).where(_trials.c.rater == number, _trials.c.choice.is_not(None))
            count = connection.execute(answered).scalar_one()
            connection.execute(_trials.delete().where(_trials.c.rater == number))
            if connection.execute(_raters.delete().where(_raters.c.id == number)).rowcount == 0:
                raise DataError(
                    f"there is no rater {rater!r}. Expected a number as in the table of votes, such as r007."
                )
        return count

    def close(self) -> None:
        """End the study: later votes are refused."""
        with self._writing() as connection:
            connection.execute(_study.update().where(_study.c.closed.is_(None)).values(closed=_now()))

    def progress(self) -> Progress:
        """How far the study is."""
        with self._engine.connect() as connection:
            voted = connection.execute(
                sa.select(_trials.c.rater, _trials.c.left, _trials.c.right).where(_trials.c.choice.is_not(None))
            ).all()
            waiting = set(connection.execute(sa.select(_trials.c.rater).where(_open)).scalars())
            closed = connection.execute(sa.select(_study.c.closed)).scalar() is not None
        pairs = Counter(frozenset((row.left, row.right)) for row in voted if row.left is not None)
        counts = [pairs[frozenset(pair)] for pair in combinations(range(len(self.design.methods)), 2)]
        raters = {row.rater for row in voted}
        return Progress(
            sum(counts), self.design.votes, min(counts), max(counts), len(raters), len(raters - waiting), closed
        )

    # ---- who is asked what ----

    def _give(self, connection: sa.Connection, rater: int) -> bool:
        """Give a rater a set of trials, one rater at a time: False when nothing is left."""
        if connection.execute(sa.select(_study.c.closed).with_for_update()).scalar() is not None:
            return False
        asked = connection.execute(
            sa.select(_trials.c.image, _trials.c.left, _trials.c.right).where(_trials.c.rater == rater)
        ).all()
        seen = {_question(row) for row in asked if row.left is not None}
        given = self._free(connection, seen, self.design.trials)
        if self.design.pairs == ACTIVE:
            given += self._informative(connection, seen, self.design.trials - len(given), rater)
        if len(given) < self.design.trials and self._withdraw(connection, rater):
            given += self._free(connection, seen, self.design.trials - len(given))
        if not given:
            return False
        rng = random.Random(f"{self.design.seed} {rater} {len(asked)}")
        trials: list[dict[str, Any]] = [
            {"slot": slot, "image": c.image, "left": c.left, "right": c.right, "screening": 0} for slot, c in given
        ]
        for number in range(self.design.screening):
            side = 1 + (rater * self.design.screening + number) % 2
            image = rng.randrange(len(self.design.images))
            trials.append({"slot": None, "image": image, "left": None, "right": None, "screening": side})
        rng.shuffle(trials)
        connection.execute(
            _trials.insert(),
            [
                trial | {"id": secrets.token_urlsafe(16), "rater": rater, "place": place}
                for place, trial in enumerate(trials, start=len(asked))
            ],
        )
        return True

    def _free(self, connection: sa.Connection, seen: set[tuple[Any, ...]], most: int) -> list[tuple[int, Comparison]]:
        """The first comparisons that nobody has; never the same pair on the same image twice. Adds them to `seen`."""
        taken = sa.exists().where(_trials.c.slot == _slots.c.id, _living)
        found: list[tuple[int, Comparison]] = []
        if most <= 0:
            return found
        for row in connection.execute(sa.select(_slots).where(~taken).order_by(_slots.c.id)):
            if _question(row) not in seen:
                seen.add(_question(row))
                found.append((row.id, Comparison(row.image, row.left, row.right)))
                if len(found) == most:
                    break
        return found

    def _withdraw(self, connection: sa.Connection, rater: int) -> bool:
        """Take back what raters who have gone away were asked and have not answered."""
        gone = sa.select(_raters.c.id).where(_raters.c.seen < _now(-HOLD), _raters.c.id != rater)
        return (
            connection.execute(
                _trials.update().where(_open, _trials.c.rater.in_(gone)).values(withdrawn=_now())
            ).rowcount
            > 0
        )

    def _informative(
        self, connection: sa.Connection, seen: set[tuple[Any, ...]], most: int, rater: int
    ) -> list[tuple[int, Comparison]]:
        """Comparisons of the pairs that the votes so far leave most open, as long as the study wants votes.

        What is asked but not answered yet counts as half a vote for each side, so that raters who come at the same time
        are not all asked the same.
        """
        methods, images = len(self.design.methods), len(self.design.images)
        asked = connection.execute(sa.select(_trials).where(_trials.c.slot.is_not(None), _living)).all()
        wins, lefts, uses = np.zeros((methods, methods)), np.zeros((methods, methods), int), Counter[Any]()

        def count(image: int, left: int, right: int, choice: int | None) -> None:
            lefts[left, right] += 1
            uses[_question(Comparison(image, left, right))] += 1
            uses[image] += 1
            wins[left, right] += {1: 1.0, 2: 0.0, None: 0.5}[choice]
            wins[right, left] += {1: 0.0, 2: 1.0, None: 0.5}[choice]

        for row in asked:
            count(row.image, row.left, row.right, row.choice)
        room = self.design.votes - connection.execute(sa.select(sa.func.count()).select_from(_slots)).scalar_one()
        rng = np.random.default_rng([self.design.seed, rater, len(asked)])
        found = []
        for _ in range(min(most, room)):
            unseen = {
                pair: [k for k in range(images) if _question(Comparison(k, *pair)) not in seen]
                for pair in combinations(range(methods), 2)
            }
            allowed = np.zeros((methods, methods), dtype=bool)
            for (i, j), left_over in unseen.items():
                allowed[i, j] = allowed[j, i] = bool(left_over)
            if not allowed.any():
                break
            i, j = sorted(next_pair(wins, allowed=allowed, rng=rng))
            shuffled = rng.permutation(unseen[i, j]).tolist()
            used = {k: (uses[_question(Comparison(k, i, j))], uses[k]) for k in shuffled}
            image = min(shuffled, key=used.__getitem__)
            turned = lefts[i, j] > lefts[j, i] or (lefts[i, j] == lefts[j, i] and rng.random() < 0.5)
            comparison = Comparison(image, *((j, i) if turned else (i, j)))
            count(comparison.image, comparison.left, comparison.right, None)
            seen.add(_question(comparison))
            values = {"image": comparison.image, "left": comparison.left, "right": comparison.right}
            slot = connection.execute(_slots.insert().values(values).returning(_slots.c.id)).scalar_one()
            found.append((slot, comparison))
        return found


def digest(design: Design) -> str:
    """What makes two studies the same: all but the words that raters are shown."""
    about = {key: value for key, value in as_json(design).items() if key not in ("title", "contact")}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _question(row: Any) -> tuple[int, int, int]:
    return row.image, min(row.left, row.right), max(row.left, row.right)


def _shown(row: Any) -> tuple[str, str]:
    """What is left and what is right, by the keys of Design.files."""
    if row.screening:
        return (REFERENCE, OBVIOUS) if row.screening == 1 else (OBVIOUS, REFERENCE)
    return str(row.left), str(row.right)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _name(rater: int) -> str:
    return f"r{rater:03d}"


def _now(shift: timedelta = timedelta()) -> str:
    return (datetime.now(UTC) + shift).isoformat(timespec="milliseconds")


# ---- the table of votes ----


def export_rows(source: str | Path) -> list[dict[str, Any]]:
    """All votes, in the order in which they came, as rows with the columns of `votes.COLUMNS`.

    Args:   source: the folder of a study or of a run that has one, or the URL of the database.
    Errors: DataError when there is no study there.
    """
    at_url = "://" in str(source)
    if not at_url and not (study_folder(Path(source)) / "study.sqlite").is_file():
        return []
    engine = _engine(str(source) if at_url else _sqlite(study_folder(Path(source))))
    try:
        with engine.connect() as connection:
            return list(_rows(connection))
    except sa.exc.DBAPIError as error:
        raise DataError(f"the votes cannot be read: {error.orig}") from error
    finally:
        engine.dispose()


def _rows(connection: sa.Connection) -> Iterator[dict[str, Any]]:
    design = from_json(json.loads(connection.execute(sa.select(_study.c.design)).scalar_one()))
    voted = sa.select(_trials).where(_trials.c.choice.is_not(None)).order_by(_trials.c.at, _trials.c.id)
    for row in connection.execute(voted):
        left, right = (design.methods[int(key)] if key.isdigit() else key for key in _shown(row))
        yield {
            "image": design.images[row.image],
            "method_1": left,
            "method_2": right,
            "result": row.choice,
            "rater": _name(row.rater),
            "screening": row.screening or "",
            "seconds": row.seconds,
            "at": row.at,
        }


def csv_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as a CSV with a header line."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
