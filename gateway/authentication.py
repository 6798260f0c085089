"""Who calls, and whether they may: bearer keys, sessions of the console, roles and merchants."""

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Final

from engine.access import ApiKey, Role, is_session
from gateway.bearer import bearer
from gateway.problems import Forbidden, ForeignOrigin, NotFound, Unauthenticated
from gateway.service import Service

SESSION_COOKIE: Final = "holdfast_session"

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})


async def identify(
    service: Service, method: str, fields: Mapping[bytes, bytes]
) -> tuple[ApiKey, str]:
    """Return the caller's key, and the secret or the token that it was told by.

    Raises Unauthenticated, ForeignOrigin, StoreUnavailable.
    """
    credential = _credential(method, fields)
    key = None if credential is None else await service.authenticate(credential)
    if key is None or credential is None:
        raise Unauthenticated
    return key, credential


def permit(key: ApiKey, *, needed: Role, merchant: str) -> None:
    """Check that the key may do what needs the role `needed`, for this merchant.

    Another merchant's path looks to them as one that does not exist, whatever their role. Raises
    NotFound, Forbidden.
    """
    if key.merchant is not None and key.merchant != merchant:
        raise NotFound
    if not key.role.allows(needed):
        raise Forbidden(needed=needed, role=key.role)


def session_token(fields: Mapping[bytes, bytes]) -> str | None:
    """Return the token of the session's cookie; None where there is none."""
    cookie = fields.get(b"cookie")
    if cookie is None:
        return None
    try:
        morsel = SimpleCookie(cookie.decode("latin-1")).get(SESSION_COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel is not None and is_session(morsel.value) else None


def check_own_page(fields: Mapping[bytes, bytes]) -> None:
    """Let no page of another site speak for whoever looks at it. Raises ForeignOrigin.

    A browser says where a request comes from in `Sec-Fetch-Site` or in `Origin`, and no script can
    change either; a program that is no browser sends neither.
    """
    site = fields.get(b"sec-fetch-site")
    if site is not None and site != b"same-origin":
        raise ForeignOrigin
    origin = fields.get(b"origin")
    if site is None and origin is not None:
        host = fields.get(b"host", b"")
        if origin.lower().partition(b"://")[2] != host.lower():
            raise ForeignOrigin


def _credential(method: str, fields: Mapping[bytes, bytes]) -> str | None:
    """Return what says who calls: an API key, or else the session of the console's own page."""
    authorization = fields.get(b"authorization")
    if authorization is not None:
        secret = bearer(authorization)
        # A session counts as a cookie only, where it is known which page it comes from.
        return None if secret is None or is_session(secret) else secret
    token = session_token(fields)
    if token is None:
        return None
    check_own_page(fields)
    if method not in SAFE_METHODS and b"sec-fetch-site" not in fields and b"origin" not in fields:
        # Every browser says where a change comes from; over plain http some do not for a read.
        raise ForeignOrigin
    return token
