"""The peer: PostgreSQL doing a reserve as one stored procedure, driven by its own pgbench.

The cluster is made for the run on the same disk as the stores, with fsync and synchronous_commit
on, and ends with it. `postgres.sql` holds the schema and the procedure. Where PostgreSQL is not
installed, or cannot run, the figures are skipped with the reason.
"""

import os
import pwd
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from bench import servers
from bench.account import AccountWrong
from bench.figures import Conditions, Sample, Skipped
from bench.load import Latency, latency_of
from bench.servers import ServerFailed

DEBIAN: Final = Path("/usr/lib/postgresql")
PROGRAMS: Final = ("initdb", "postgres", "pgbench", "psql", "pg_isready")
UNPRIVILEGED_USERS: Final = ("postgres", "nobody")
"""PostgreSQL refuses to run as root; the first of these that exists runs it then."""

SUPERUSER: Final = "bench"
DATABASE: Final = "postgres"

CLIENTS_TRIED: Final = (1, 4, 16, 64)
"""The best of them is measured: a hot row likes few, other rows many."""

TRIAL_SECONDS: Final = 1
PROGRAM_SECONDS: Final = 60.0
MAX_LOGGED: Final = 2_000_000

CONFIGURATION: Final = """
listen_addresses = ''
max_connections = 100
shared_buffers = 256MB
fsync = on
synchronous_commit = on
full_page_writes = on
wal_level = minimal
max_wal_senders = 0
max_wal_size = 4GB
checkpoint_timeout = 30min
jit = off
"""
"""As safe as the stores are, and otherwise in the peer's favour: no replication, no checkpoint in
the middle of a measurement."""

_RESERVE: Final = (
    "SELECT reserve(gen_random_uuid(), 'bench', {location}, {sku}, 1, interval '15 minutes');\n"
)
HOT_ROW: Final = _RESERVE.format(location="'store-0'", sku="'sku-0'")
UNIFORM: Final = "\\set place random(0, 99)\n\\set item random(0, 99)\n" + _RESERVE.format(
    location="'store-' || :place", sku="'sku-' || :item"
)


async def reserve(conditions: Conditions, transaction: str) -> Sample:
    """Measure a pgbench script at the number of clients that suits it best."""
    async with _cluster(conditions, _find()) as cluster:
        rates = {
            clients: (await cluster.pgbench(transaction, clients, TRIAL_SECONDS)).per_second
            for clients in CLIENTS_TRIED
        }
        clients = max(rates, key=lambda tried: rates[tried])
        seconds = max(1, round(conditions.window.seconds))
        best = await cluster.pgbench(transaction, clients, seconds)
        await cluster.check()
        return Sample(
            value=best.per_second,
            latency=best.latency,
            details={"clients": clients, "version": cluster.version},
        )


class _Run(msgspec.Struct, frozen=True):
    per_second: float
    latency: Latency


def _find() -> Path:
    """Return the directory of the newest complete installation. Raises Skipped."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(DEBIAN.glob("*/bin"), key=_major, reverse=True)
    for directory in found:
        if all((directory / program).exists() for program in PROGRAMS):
            return directory
    raise Skipped(f"no PostgreSQL with {', '.join(PROGRAMS)} on PATH or below {DEBIAN}")


def _major(directory: Path) -> int:
    name = directory.parent.name
    return int(name) if name.isdecimal() else 0


def _as_unprivileged() -> tuple[pwd.struct_passwd | None, list[str]]:
    """Return who runs the server, and what its command line starts with. Raises Skipped."""
    if os.geteuid() != 0:
        return None, []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise Skipped("PostgreSQL does not run as root, and there is no setpriv to drop to a user")
    for name in UNPRIVILEGED_USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        # A change of user clears the signal that ends the server with this process: set it anew.
        ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        return user, [setpriv, *ids, "--pdeathsig", "KILL"]
    raise Skipped(f"PostgreSQL does not run as root, and there is no {UNPRIVILEGED_USERS}")


@asynccontextmanager
async def _cluster(conditions: Conditions, programs: Path) -> AsyncIterator["_Cluster"]:
    """Make a cluster, run it, and remove it."""
    user, prefix = _as_unprivileged()
    with (
        tempfile.TemporaryDirectory(dir=conditions.work_dir) as directory,
        # A path of its own, because the kernel takes only short ones for sockets.
        tempfile.TemporaryDirectory() as sockets,
    ):
        if user is not None:
            os.chown(directory, user.pw_uid, user.pw_gid)
            os.chown(sockets, user.pw_uid, user.pw_gid)
        data = Path(directory) / "data"
        initdb = [*prefix, str(programs / "initdb"), "-D", str(data), "-U", SUPERUSER]
        initdb += ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        try:
            await servers.run(initdb, within_seconds=PROGRAM_SECONDS, cwd=Path(directory))
        except ServerFailed as error:
            raise Skipped(f"PostgreSQL cannot be set up here: {error}") from error
        with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(f"{CONFIGURATION}unix_socket_directories = '{sockets}'\n")
        argv = [*prefix, str(programs / "postgres"), "-D", str(data)]
        async with servers.child(argv, Path(directory) / "output") as server:
            cluster = _Cluster(programs, sockets)
            await server.ready("PostgreSQL", cluster.answers)
            await cluster.make_schema()
            yield cluster


class _Cluster:
    """A running cluster whose socket lies in `sockets`."""

    def __init__(self, programs: Path, sockets: str) -> None:
        self._programs = programs
        self._sockets = sockets
        self._transactions = 0
        self.version = ""

    async def answers(self) -> bool:
        """Say whether it takes connections."""
        try:
            await self._run("pg_isready", "-q")
        except ServerFailed:
            return False
        return True

    async def make_schema(self) -> None:
        """Make the tables, the procedure and the stock. Raises ServerFailed."""
        schema = Path(__file__).with_name("postgres.sql")
        await self._run("psql", "-v", "ON_ERROR_STOP=1", "-q", "-f", str(schema))
        self.version = await self.ask("SHOW server_version")

    async def ask(self, query: str) -> str:
        """Return the first line of a query's answer."""
        answer = await self._run("psql", "-At", "-v", "ON_ERROR_STOP=1", "-c", query)
        return answer.partition("\n")[0]

    async def pgbench(self, transaction: str, clients: int, seconds: int) -> _Run:
        """Run a script for so long; return its rate and the latencies. Raises ServerFailed."""
        with tempfile.TemporaryDirectory() as logs:
            script = Path(logs) / "transaction.sql"
            script.write_text(transaction, encoding="utf-8")
            said = await self._run(
                *("pgbench", "-n", "-f", str(script), "-M", "prepared", "-T", str(seconds)),
                *("-c", str(clients), "-j", str(min(2, clients)), "-l"),
                *("--log-prefix", str(Path(logs) / "log")),
                within_seconds=seconds + PROGRAM_SECONDS,
            )
            latency = latency_of(_logged_seconds(Path(logs)))
        facts = _facts(said.splitlines())
        processed = int(facts["number of transactions actually processed"].partition("/")[0])
        self._transactions += processed
        return _Run(float(facts["tps"].split()[0]), latency)

    async def check(self) -> None:
        """Compare the tables with what pgbench was told. Raises AccountWrong."""
        found = await self.ask(
            "SELECT (SELECT sum(reserved) FROM stock), (SELECT count(*) FROM reservation),"
            " (SELECT count(*) FROM ledger), (SELECT sum(version) FROM stock)"
        )
        if set(found.split("|")) != {str(self._transactions)}:
            raise AccountWrong(
                f"PostgreSQL has {found} (reserved, reservations, ledger, versions), where "
                f"{self._transactions} reserves were acknowledged"
            )

    async def _run(
        self, program: str, *arguments: str, within_seconds: float = PROGRAM_SECONDS
    ) -> str:
        argv = [str(self._programs / program), "-h", self._sockets, "-U", SUPERUSER, *arguments]
        if program != "pg_isready":
            argv.append(DATABASE)
        return await servers.run(argv, within_seconds=within_seconds)


def _logged_seconds(logs: Path) -> list[float]:
    """Read how long each transaction took; pgbench logs it in µs, as the third column."""
    return [
        int(line.split(" ", 3)[2]) / 1e6
        for log in logs.glob("log.*")
        for line in log.read_text(encoding="ascii").splitlines()[:MAX_LOGGED]
    ]


def _facts(lines: Sequence[str]) -> dict[str, str]:
    """Read pgbench's report, whose lines are `name: value` or `name = value`."""
    facts = {}
    for line in lines:
        for mark in (" = ", ": "):
            name, found, value = line.partition(mark)
            if found:
                facts[name] = value
                break
    return facts
