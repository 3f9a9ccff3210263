"""What is refused before a route is asked: foreign hosts, cross-site requests, missing tokens, bodies too large."""

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instantstyle.serve.errors import error_response
from instantstyle.serve.metrics import Metrics

SAFE = ("GET", "HEAD", "OPTIONS")
COOKIE = "instantstyle_session"
CSP = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str | None:
    """The host of a Host header without its port, lower case; None where it is none."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return None
    if parts.path or parts.query or parts.fragment or parts.username is not None or not parts.hostname:
        return None
    return parts.hostname.lower()


class Guard:
    """The outermost ASGI layer: adds security headers, and lets in what comes from where it may."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str] = (),
        any_address: bool = False,
        origins: Iterable[str] = (),
        token: str | None = None,
        body_bytes: int,
        metrics: Metrics,
        public: Iterable[str] = (),
    ) -> None:
        """`hosts` are names beside loopback's; with `any_address` every IP address is a host of ours too."""
        self.app, self.body_bytes, self.metrics = app, body_bytes, metrics
        self.hosts, self.any_address = {*_LOOPBACK, *(host.lower() for host in hosts)}, any_address
        self.origins = set(origins)
        self.token = None if token is None else token.encode()
        self.session = None if self.token is None else hmac.new(self.token, b"session", hashlib.sha256).hexdigest()
        self.public = tuple(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sender = self._with_headers(send, headers.get("origin"))
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            status, sentence, code = refusal
            self.metrics.refused.labels(code).inc()
            self.metrics.log.warning("refused %s %s: %s", scope["method"], scope["path"][:200], sentence)
            if code == "token":
                await asyncio.sleep(0.2)  # guessing is slow
            extra = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
            if status == 413:
                extra["Connection"] = "close"
            await error_response(status, sentence, code, headers=extra)(scope, receive, sender)
            return
        if scope["method"] == "OPTIONS" and headers.get("origin") in self.origins:
            await self._preflight(scope, receive, sender)
            return
        await self._limited(scope, receive, sender)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str, str] | None:
        host = host_of(headers.get("host", ""))
        if host is None or not self._ours(host):
            named = headers.get("host", "")[:100]
            return 421, f"this server is not called {named!r}: use its own address, or name it by --allow-host", "host"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        named = origin is not None and origin in self.origins
        if scope["method"] not in SAFE and not named:
            if site not in (None, "same-origin", "none"):
                return 403, "a page of another site asked for this, and none may", "cross_site"
            if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
                return (
                    403,
                    f"a page of {origin[:100]!r} asked for this, and it is not named by --allow-origin",
                    "origin",
                )
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 18:
            return 400, "Content-Length is no number", "length"
        if int(length) > self.body_bytes:
            return 413, f"the body has {int(length):,} bytes, and at most {self.body_bytes:,} are read", "too_large"
        if self.token is not None and not self._is_public(scope["path"]) and not self.knows(headers):
            return 401, "this server asks for its token: Authorization: Bearer TOKEN, or log in on the page", "token"
        return None

    def _ours(self, host: str) -> bool:
        if host in self.hosts:
            return True
        try:
            return self.any_address and bool(ipaddress.ip_address(host))
        except ValueError:
            return False

    def _is_public(self, path: str) -> bool:
        return any(
            path == each or (each.endswith("/") and each != "/" and path.startswith(each)) for each in self.public
        )

    def knows(self, headers: Headers) -> bool:
        """Whether a request carries the token, or the cookie that the page's login gave."""
        if self.token is None or self.session is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self.token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and secrets.compare_digest(cookie.value.encode(), self.session.encode())

    def _with_headers(self, send: Send, origin: str | None) -> Send:
        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if origin is not None and origin in self.origins:
                    headers["Access-Control-Allow-Origin"] = origin
                    headers["Cross-Origin-Resource-Policy"] = "cross-origin"
                    headers.add_vary_header("Origin")
            await send(message)

        return sender

    async def _preflight(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = {
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Client-Id",
        }
        await Response(status_code=204, headers=allowed)(scope, receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, counting the bytes of bodies that do not say how long they are."""
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > self.body_bytes:
                    self.metrics.refused.labels("too_large").inc()
                    raise HTTPException(413, f"the body is larger than the {self.body_bytes:,} bytes that are read")
            return message

        await self.app(scope, counted, send)
