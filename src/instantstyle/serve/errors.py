"""ApiError and the one shape in which every refusal is told: OpenAI's, which their client reads."""

import errno
import logging
import sqlite3
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from instantstyle.errors import InputError, InstantStyleError, OutputError
from instantstyle.serve.store import KeyReusedError

log = logging.getLogger("instantstyle.serve")


class ApiError(Exception):
    """A refusal with its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    """A sentence: what was given, what is known, what to do."""
    type: str
    param: str | None = None
    """The field it is about."""
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The JSON of a refusal."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A refusal as a response.  OpenAI's client asks 429 and 5xx again unless told not to."""
    retry = "true" if status in (429, 503) else "false"
    return JSONResponse(
        error_body(status, message, code, param), status, {"x-should-retry": retry, **dict(headers or {})}
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, for its OpenAPI description; those that any route may give are among them."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    said = {
        400: "Refused: a sentence says why",
        401: "A token is needed",
        403: "Not from here",
        404: "There is no such thing",
        409: "It does not go with what is there",
        413: "Too large",
        415: "Not a content type that is read here",
        421: "Not a host of this server",
        429: "The queue is full",
        503: "The model is not loaded",
        507: "The disk is full",
    }
    return {status: {"description": said[status], "content": content} for status in (400, 401, 403, *statuses)}


def _validation(invalid: RequestValidationError) -> JSONResponse:
    first = invalid.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "header", "path"))
    what = first["msg"].removeprefix("Value error, ")
    return error_response(400, f"{place or 'the body'}: {what[:1].lower()}{what[1:]}", "invalid_value", place or None)


def disk_reason(refused: OutputError) -> str:
    """Why a file could not be written, without its path, which is no client's business."""
    return str(refused).partition(": ")[2] or "it was refused"


def unforeseen(request: Request, failed: Exception) -> JSONResponse:
    """What nobody thought of: the log has all of it, the client a sentence."""
    log.exception("%s %s failed", request.method, request.url.path, exc_info=failed)
    return error_response(500, f"{type(failed).__name__}: this is a mistake of ours, and the log says more")


def add_error_handlers(app: FastAPI) -> None:
    """Every way a route may fail becomes one shape."""

    @app.exception_handler(ApiError)
    async def _api(_: Request, refused: ApiError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return error_response(refused.status, refused.message, refused.code, refused.param, refused.headers)

    @app.exception_handler(KeyReusedError)
    async def _reused(_: Request, refused: KeyReusedError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return error_response(409, str(refused), "key_reused", "Idempotency-Key")

    @app.exception_handler(InputError)
    async def _input(_: Request, refused: InputError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return error_response(400, str(refused), "invalid_value")

    @app.exception_handler(OutputError)
    async def _unwritten(_: Request, refused: OutputError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        log.error("%s", refused)
        return error_response(507, f"this could not be kept on the server's disk: {disk_reason(refused)}", "disk_full")

    @app.exception_handler(sqlite3.OperationalError)
    async def _queue(_: Request, refused: sqlite3.Error) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        log.error("the queue cannot be written: %s", refused)
        return error_response(507, f"the server's queue cannot be written ({refused}): try again later", "disk_full")

    @app.exception_handler(OSError)
    async def _system(request: Request, refused: OSError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        if refused.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # large bodies are kept in files while read
            return error_response(507, "the server's disk is full: try again later", "disk_full")
        return unforeseen(request, refused)

    @app.exception_handler(ClientDisconnect)
    async def _left(_: Request, left: ClientDisconnect) -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(status_code=499)  # nobody reads it; 499 is what nginx calls it in its log

    @app.exception_handler(InstantStyleError)
    async def _own(_: Request, failed: InstantStyleError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return error_response(500, str(failed), "failed")

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, bad: RequestValidationError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return _validation(bad)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, bad: HTTPException) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        sentence = {404: "there is nothing at this address", 405: "this address does not take that method"}
        said = sentence.get(bad.status_code, str(bad.detail))
        code = "too_large" if bad.status_code == 413 else None
        return error_response(bad.status_code, said, code, headers=bad.headers)

    @app.exception_handler(Exception)
    async def _any(request: Request, failed: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return unforeseen(request, failed)
