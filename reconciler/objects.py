"""The object store that keeps the archive: a local folder, or a bucket by URL.

Files are written once and never changed. In a local folder each is flushed to the disk before it
counts, as obstore leaves that to the operating system.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, from_url

MAX_LISTED: Final = 1_000_000
"""Objects in one listing: more segments than a partition writes in 20 years at one a minute."""


class ArchiveUnavailable(Exception):
    """The object store cannot be reached or does not allow what is needed; the cause is kept."""


class Objects:
    """An object store below one prefix; paths are relative, with `/` between their parts."""

    def __init__(self, store: Any, *, folder: Path | None) -> None:
        """Use `open`."""
        self._store = store
        self._folder = folder

    @classmethod
    def open(cls, url: str, **options: Any) -> Self:
        """Open a folder (a path or `file://`) or a bucket (`s3://bucket/prefix` and others).

        A bucket's credentials come from the environment as its own tools read them
        (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...), or from `options`. Raises ArchiveUnavailable.
        """
        scheme = urlsplit(url).scheme
        try:
            if scheme in ("", "file"):
                path = Path(url2pathname(urlsplit(url).path) if scheme else url).absolute()
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
                return cls(LocalStore(path), folder=path)
            return cls(from_url(url, **options), folder=None)
        except (BaseError, OSError, ValueError) as error:
            raise ArchiveUnavailable(f"cannot open {url}: {_told(error)}") from error

    async def put_new(self, path: str, data: bytes) -> bool:
        """Write an object that must not exist yet; False where it does. It is durable then."""
        try:
            await obstore.put_async(self._store, path, data, mode="create")
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise ArchiveUnavailable(f"cannot write {path}: {_told(error)}") from error
        if self._folder is not None:
            await asyncio.to_thread(_flush, self._folder, path)
        return True

    async def get(self, path: str) -> bytes | None:
        """Read an object whole; None where there is none."""
        try:
            answer = await obstore.get_async(self._store, path)
            return bytes(await answer.bytes_async())
        except (NotFoundError, FileNotFoundError):
            return None
        except (BaseError, OSError) as error:
            raise ArchiveUnavailable(f"cannot read {path}: {_told(error)}") from error

    async def head(self, path: str, size: int) -> bytes | None:
        """Read the first `size` bytes of an object, or all of a shorter one; None without one."""
        try:
            return bytes(await obstore.get_range_async(self._store, path, start=0, end=size))
        except (NotFoundError, FileNotFoundError):
            return None
        except (BaseError, OSError) as error:
            raise ArchiveUnavailable(f"cannot read {path}: {_told(error)}") from error

    async def list(self, prefix: str, *, after: str | None = None) -> list[str]:
        """List the objects below a prefix in the order of their paths, from past `after`."""
        found: list[str] = []
        try:
            stream = obstore.list(self._store, prefix, offset=after)
            async for batch in stream:
                found.extend(cast(str, item["path"]) for item in cast(Sequence[Any], batch))
                if len(found) > MAX_LISTED:
                    raise ArchiveUnavailable(f"{prefix} holds more than {MAX_LISTED} objects")
        except (BaseError, OSError) as error:
            raise ArchiveUnavailable(f"cannot list {prefix}: {_told(error)}") from error
        return sorted(found)

    async def folders(self) -> Sequence[str]:
        """List the first parts of all paths, in order."""
        try:
            found = await obstore.list_with_delimiter_async(self._store)
        except (BaseError, OSError) as error:
            raise ArchiveUnavailable(f"cannot list the archive: {_told(error)}") from error
        return sorted(prefix.rstrip("/") for prefix in found["common_prefixes"])

    async def delete(self, path: str) -> None:
        """Delete an object; one that is gone already is no error."""
        try:
            await obstore.delete_async(self._store, path)
        except (NotFoundError, FileNotFoundError):
            return
        except (BaseError, OSError) as error:
            raise ArchiveUnavailable(f"cannot delete {path}: {_told(error)}") from error


def _flush(folder: Path, path: str) -> None:
    """Flush a file and the folders that lead to it."""
    target = folder / PurePosixPath(path)
    for name in (target, *target.parents):
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if name == folder:
            break


def _told(error: BaseException) -> str:
    """Return what an error says; below its first line is what only a debugger wants."""
    return str(error).partition("\n")[0]
