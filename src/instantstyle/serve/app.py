"""create_app: the studio's FastAPI application, its page and its guard."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from instantstyle.request import Request as DrawRequest
from instantstyle.request import package_version
from instantstyle.serve.errors import ApiError, ErrorBody, add_error_handlers, documented
from instantstyle.serve.guards import COOKIE, Guard
from instantstyle.serve.routes import images, jobs, model, openai, styles
from instantstyle.serve.studio import Studio


class Login(BaseModel):
    """The page's login."""

    token: str = Field(max_length=500)


class Page(StaticFiles):
    """The page's files: asked for anew each time, answered 304 where nothing changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """One of them."""
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(
    studio: Studio,
    *,
    token: str | None = None,
    hosts: Iterable[str] = (),
    any_address: bool = False,
    origins: Iterable[str] = (),
) -> ASGIApp:
    """The guarded application of a studio, which it starts and closes with itself."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        studio.board.attach()
        studio.start()
        yield
        studio.board.close()
        studio.close()

    app = FastAPI(
        title="InstantStyle studio",
        version=package_version(),
        summary="Pictures in the style of pictures",
        docs_url=None,  # both load scripts from elsewhere; docs/api.md and /openapi.json stay
        redoc_url=None,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.studio = studio
    add_error_handlers(app)
    for part in (openai, jobs, images, styles, model):
        app.include_router(part.router)
    guard = Guard(
        app,
        hosts=hosts,
        any_address=any_address,
        origins=origins,
        token=token,
        body_bytes=studio.limits.body_bytes,
        metrics=studio.metrics,
        public=("/", "/healthz", "/v1/login", "/index.html", "/static/", "/favicon.svg"),
    )
    _add_service_routes(app, studio, guard)
    page = Path(str(files("instantstyle.serve") / "page"))
    app.mount("/", Page(directory=page, html=True), name="page")
    _describe(app)
    return guard


def _add_service_routes(app: FastAPI, studio: Studio, guard: Guard) -> None:
    @app.get("/healthz", tags=["service"])
    def healthz() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["service"], responses=documented(503))
    def readyz() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """The model is loaded and the queue can be written."""
        _ = studio.model
        if not studio.worker.ready or not studio.store.check():
            raise ApiError(503, "the engine has stopped, or the queue cannot be written", code="not_ready")
        return {"status": "ready"}

    @app.get("/metrics", tags=["service"], response_class=Response, responses=documented())
    def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        """For Prometheus."""
        return Response(studio.metrics_text(), headers={"Content-Type": studio.metrics.content_type})

    @app.get("/v1/session", tags=["service"])
    def session(request: Request) -> dict[str, bool | str | None]:  # pyright: ignore[reportUnusedFunction]
        """Whether a token is asked for, and was given, and whether the model is there: what the page looks at first."""
        return {
            "token": guard.token is not None,
            "known": guard.knows(request.headers),
            "ready": studio.worker.ready,
            "failure": studio.worker.failure,
        }

    guard.public = (*guard.public, "/v1/session")

    @app.post("/v1/login", tags=["service"], responses=documented())
    def login(body: Login) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Exchange the token for a cookie that scripts cannot read."""
        import secrets

        if guard.token is None or guard.session is None:
            return JSONResponse({"known": True})
        if not secrets.compare_digest(body.token.encode(), guard.token):
            raise ApiError(401, "this is not the token of this server", code="token")
        response = JSONResponse({"known": True})
        response.set_cookie(COOKIE, guard.session, httponly=True, samesite="strict", max_age=30 * 86400, path="/")
        return response


def _describe(app: FastAPI) -> None:
    """Put the schema of a Request, which routes read by themselves, into the description."""
    made = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            parts = schema.setdefault("components", {}).setdefault("schemas", {})
            own = DrawRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            parts.update(own.pop("$defs", {}))
            parts["Request"] = own
            template = "#/components/schemas/{model}"
            error = ErrorBody.model_json_schema(ref_template=template)
            parts.update(error.pop("$defs", {}))
            parts["ErrorBody"] = error
            parts["StoredImage"] = {
                "description": "A data URL, `attachment:NAME`, an address of this server, or as it is remembered",
                "anyOf": [{"type": "string", "maxLength": 2**26}, parts["StoredImage"]],
            }
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # pyright: ignore[reportAttributeAccessIssue]
    # Now, and not with the first request as FastAPI would: it builds its routes under filters of warnings, which are
    # the whole process's, and the engine thread changes them too while it loads the model.
    described()
