"""`holdfast doctor`: what is wrong with this setup, and what to do about it."""

import asyncio
import fcntl
import os
import platform
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import click
import httpx
import msgspec

from engine.boot import StoreRefused, check_store
from engine.outcomes import HoldfastError
from engine.store import Client as StoreClient
from engine.store import Store, StoreSettings, close_quietly, connect
from engine.upkeep import read_upkeep
from holdfast import calls
from holdfast.cli.connection import (
    Service,
    SetupProblem,
    json_option,
    service_options,
    store_settings,
)
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Output
from holdfast.client import ApiError, ClientError, RetryPolicy, is_loopback
from holdfast.datadir import DataDir, DataDirRefused, read_private
from holdfast.embedded import NoServer, find_server
from holdfast.settings import Settings, SettingsRefused

MIN_PYTHON: Final = (3, 11)

MIN_FREE_BYTES: Final = 1024**3
"""Below this a rewrite of the append-only file may not find the room that it needs."""

MAX_CLOCK_SKEW_SECONDS: Final = 2.0
"""Between this machine and the store. Expiry goes by the store's clock alone, but whoever compares
times in answers with their own is misled by more."""

ANSWER_SECONDS: Final = 5.0

_ONE_TRY: Final = RetryPolicy(max_attempts=1)


class Status(StrEnum):
    """What a check came to; only `failed` makes the exit code other than 0."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check: what was found and, unless it is well, what to do."""

    check: str
    status: Status
    found: str
    remedy: str = ""


@click.command(short_help="Say what is wrong with this setup.")
@click.option(
    "--redis-url", envvar="HOLDFAST_REDIS_URL", help="The store, if not the embedded one."
)
@service_options
@json_option
def doctor(service: Service, redis_url: str | None, output: Output) -> None:
    """Check this machine's setup, each finding with its remedy; exit code 4 where one fails.

    It works while the service runs and while it does not. A store that is named with --redis-url
    is checked as `holdfast serve` does, which prepares a new one.
    """
    findings: list[Finding] = []
    for finding in _examine(service, redis_url):
        findings.append(finding)
        if not output.as_json:
            remedy = f"\n          {finding.remedy}" if finding.remedy else ""
            output.text(f"{finding.status.value:8}  {finding.check}: {finding.found}{remedy}")
    failed = sum(finding.status is Status.FAILED for finding in findings)
    output.document({"healthy": failed == 0, "findings": findings})
    if failed:
        output.note(f"{failed} of {len(findings)} checks failed.")
        sys.exit(ExitCode.SETUP)


def _examine(service: Service, redis_url: str | None) -> Iterator[Finding]:
    yield _python()
    yield _environment(os.environ)
    yield _server_binary(redis_url)
    directory = service.data_dir
    yield _data_dir(directory)
    holder = _lock_holder(directory)
    yield _lock(directory, holder)
    answering = _service(service, holder)
    yield answering
    yield from _store(redis_url, directory, is_serving=holder is not None)
    yield _api_key(service, is_answering=answering.status is Status.OK)


def _python() -> Finding:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < MIN_PYTHON:
        wanted = ".".join(map(str, MIN_PYTHON))
        return _failed("python", found, f"install Python {wanted} or later")
    return _ok("python", found)


def _environment(environ: Mapping[str, str]) -> Finding:
    try:
        Settings.read({}, environ)
    except SettingsRefused as refused:
        found = "; ".join(map(str, refused.problems))
        return _failed("environment", found, "unset the variable, or give it what is wanted")
    set_here = sorted(name for name in environ if name.startswith("HOLDFAST_"))
    return _ok("environment", ", ".join(set_here) or "no HOLDFAST_ variable is set")


def _server_binary(redis_url: str | None) -> Finding:
    if redis_url:
        return _skipped("server binary", "a store of its own is named")
    try:
        binary = find_server()
    except NoServer as missing:
        tried = "; ".join(f"{attempt.where}: {attempt.why}" for attempt in missing.attempts)
        remedy = "install valkey-server, or name a store with --redis-url"
        return _failed("server binary", tried, remedy)
    version = ".".join(map(str, binary.version))
    return _ok("server binary", f"{binary.kind} {version} from {binary.source} ({binary.path})")


def _data_dir(directory: DataDir) -> Finding:
    path = directory.path
    try:
        found = path.stat()
    except FileNotFoundError:
        return _missing_data_dir(path)
    except OSError as fault:
        return _failed("data directory", str(fault), "choose another with --data-dir")
    if not stat.S_ISDIR(found.st_mode):
        return _failed("data directory", f"{path} is a file", "choose another with --data-dir")
    if found.st_uid != os.geteuid():
        remedy = f"run this as that user, or chown -R {os.geteuid()} {path}"
        return _failed("data directory", f"{path} belongs to uid {found.st_uid}", remedy)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return _failed("data directory", f"others may write to {path}", f"chmod go-w {path}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return _failed("data directory", f"{path} is not writable", f"chmod u+rwx {path}")
    for secret in (directory.admin_key, directory.store_password):
        if secret.exists() and secret.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return _failed("data directory", f"others may read {secret}", f"chmod 600 {secret}")
    free_bytes = shutil.disk_usage(path).free
    described = f"{path}, {free_bytes / 1024**3:.1f} GiB free"
    if free_bytes < MIN_FREE_BYTES:
        remedy = "make room: when the disk is full the store stops"
        return Finding(
            check="data directory", status=Status.WARNING, found=described, remedy=remedy
        )
    return _ok("data directory", described)


def _missing_data_dir(path: Path) -> Finding:
    existing = next(parent for parent in path.parents if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        remedy = "choose another with --data-dir, or let this user write there"
        return _failed("data directory", f"{existing} is not writable", remedy)
    return _ok("data directory", f"{path} is not there yet; `holdfast serve` makes it")


def _lock_holder(directory: DataDir) -> str | None:
    """Return who holds the data directory, as text, or None where nobody does."""
    try:
        with directory.lock_file.open(encoding="ascii") as lock:
            try:
                # A shared lock for an instant: it says what the pid in the file cannot, whether
                # that process still lives.
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return f"process {read_private(directory.lock_file) or '(unknown)'}"
    except OSError:
        return None
    return None


def _lock(directory: DataDir, holder: str | None) -> Finding:
    if holder is None:
        return _ok("lock", f"nobody serves from {directory.path}")
    return _ok("lock", f"held by {holder}, which serves from {directory.path}")


def _service(service: Service, holder: str | None) -> Finding:
    """Look what answers at the URL: Holdfast, something else, or nothing."""
    try:
        address = httpx.URL(service.url)
        with httpx.Client(timeout=ANSWER_SECONDS, trust_env=not is_loopback(address)) as http:
            answer = http.get(address.join("/readyz"))
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as fault:
        return _failed("service", f"{service.url}: {fault}", "give an http:// or https:// --url")
    except httpx.ConnectError as fault:
        if is_loopback(address) and holder is None:
            found = f"nothing listens at {service.url}: the port is free"
            return _skipped("service", f"{found}; start it with `holdfast serve`")
        remedy = "start `holdfast serve`, or give its address with --url"
        return _failed("service", f"no connection to {service.url}: {fault}", remedy)
    except httpx.TransportError as fault:
        remedy = "look at the service's log; it may hang or be overloaded"
        return _failed("service", f"no answer from {service.url}: {fault!r}", remedy)
    if "Request-Id" not in answer.headers:
        remedy = "that is another program: stop it, or choose another port (--port, --url)"
        found = f"what answers at {service.url} ({answer.status_code}) is not Holdfast"
        return _failed("service", found, remedy)
    if answer.status_code != httpx.codes.OK:
        found = f"Holdfast at {service.url} is not ready: {answer.text[:500]}"
        return _failed("service", found, "look at the store's check below and the service's log")
    return _ok("service", f"Holdfast is ready at {service.url}")


def _store(redis_url: str | None, directory: DataDir, *, is_serving: bool) -> Iterator[Finding]:
    if not redis_url and not is_serving:
        yield _skipped("store", "the embedded store runs only while `holdfast serve` does")
        return
    if not redis_url and not _has_embedded_store(directory):
        remedy = "name the store that the service runs on with --redis-url"
        yield _skipped("store", f"no embedded store runs in {directory.path}", remedy)
        return
    try:
        settings = store_settings(redis_url, directory.path)
    except SetupProblem as problem:
        yield _failed("store", problem.reason, problem.remedy)
        return
    yield from asyncio.run(_ask_store(settings))


def _has_embedded_store(directory: DataDir) -> bool:
    try:
        return directory.socket().exists()
    except DataDirRefused:
        return False


async def _ask_store(settings: StoreSettings) -> list[Finding]:
    client = connect(settings)
    try:
        facts = await check_store(client, unsafe_durability=True)
        nodes = ", ".join(f"{node.kind} {node.version}" for node in facts.nodes)
        findings = [_ok("store", f"{nodes}, {facts.partitions} partitions")]
        findings += [
            _failed("durability", problem.found, problem.remedy) for problem in facts.warnings
        ]
        if not facts.warnings:
            findings.append(_ok("durability", "append-only file with fsync always"))
        if not facts.cluster:
            findings.append(await _clock(client))
        findings += await _upkeep(Store(client, settings))
    except StoreRefused as refused:
        return [
            _failed("store", f"{problem.code}: {problem.found}", problem.remedy)
            for problem in refused.problems
        ]
    except HoldfastError as fault:
        remedy = "start the store, or name the right one with --redis-url"
        return [_failed("store", str(fault), remedy)]
    else:
        return findings
    finally:
        await close_quietly(client)


async def _upkeep(store: Store) -> list[Finding]:
    """Look at what the reconciler last told of itself."""
    status = await read_upkeep(store)
    if status is None:
        found = "nobody has archived or audited for a minute"
        remedy = "start the background process: `holdfast serve` does, and keeps it up"
        return [_warned("reconciler", found, remedy)]
    if status.alarms:
        return [
            _warned(f"reconciler: {alarm.code}", alarm.text, "see docs/operating/reconciler.md")
            for alarm in status.alarms
        ]
    found = (
        f"archive {status.archive}, {status.behind_operations:,} operations behind, "
        f"the oldest for {status.behind_ms / 1_000:,.0f} s"
    )
    return [_ok("reconciler", found)]


async def _clock(client: StoreClient) -> Finding:
    reply: Any = await client.execute_command("TIME")
    seconds, microseconds = reply
    skew_seconds = abs(time.time() - (int(seconds) + int(microseconds) / 1e6))
    found = f"this machine and the store differ by {skew_seconds:.1f} s"
    if skew_seconds <= MAX_CLOCK_SKEW_SECONDS:
        return _ok("clock", found)
    remedy = "let both follow NTP; holds expire by the store's clock"
    return Finding(check="clock", status=Status.WARNING, found=found, remedy=remedy)


def _api_key(service: Service, *, is_answering: bool) -> Finding:
    try:
        _, source = service.api_key()
    except SetupProblem as problem:
        # Before the first start there can be no key yet.
        make = _failed if is_answering else _skipped
        return make("API key", problem.reason, problem.remedy)
    if not is_answering:
        return _skipped("API key", f"found in {source}; the service is not there to try it")
    with service.client(retry=_ONE_TRY) as client:
        try:
            client.send(calls.locations("holdfast-doctor", limit=1))
        except ApiError as refusal:
            # A key of one merchant is answered 404 for another one's data, so it is good.
            if refusal.status != httpx.codes.NOT_FOUND:
                remedy = "make a new one with `holdfast keys create`"
                return _failed("API key", f"{source}: {refusal} ({refusal.code})", remedy)
        except ClientError as fault:
            return _failed("API key", str(fault), "look at the service's check above")
    return _ok("API key", f"the one in {source} works")


def _ok(check: str, found: str) -> Finding:
    return Finding(check=check, status=Status.OK, found=found)


def _warned(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, status=Status.WARNING, found=found, remedy=remedy)


def _failed(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, status=Status.FAILED, found=found, remedy=remedy)


def _skipped(check: str, found: str, remedy: str = "") -> Finding:
    return Finding(check=check, status=Status.SKIPPED, found=found, remedy=remedy)
