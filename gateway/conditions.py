"""Conditional requests (RFC 9110, section 13): a row's version is its entity tag."""

import re

from gateway.calls import Call, Header
from gateway.problems import InvalidRequest, PreconditionRequired
from gateway.wire import ProblemError

_VERSION_TAG = re.compile(rb'"([1-9][0-9]{0,15})"')


def etag(version: int) -> Header:
    """Return the header that names a row's version."""
    return (b"etag", b'"%d"' % version)


def is_unchanged(call: Call, version: int) -> bool:
    """Say whether If-None-Match names the version, so that the client has the row already."""
    value = call.headers.get(b"if-none-match")
    if value is None:
        return False
    tags = [tag.strip().removeprefix(b"W/") for tag in value.split(b",")]
    return tags == [b"*"] or b'"%d"' % version in tags


def expected_version(call: Call) -> int:
    """Return the version that a change is meant for, 0 where the row is to be made.

    Raises PreconditionRequired where neither If-Match nor If-None-Match is there, InvalidRequest
    where they are not of their form.
    """
    match = call.headers.get(b"if-match")
    none_match = call.headers.get(b"if-none-match")
    if match is None and none_match is None:
        raise PreconditionRequired
    if match is None:
        if none_match != b"*":
            raise _invalid("If-None-Match", "must be `*`, which makes a new row")
        return 0
    if none_match is not None:
        raise _invalid("If-None-Match", "cannot stand beside If-Match")
    tag = _VERSION_TAG.fullmatch(match)
    if tag is None:
        raise _invalid("If-Match", "must be one version of the row, in quotes: the ETag of its GET")
    return int(tag[1])


def _invalid(header: str, detail: str) -> InvalidRequest:
    return InvalidRequest(ProblemError(header=header, detail=detail))
