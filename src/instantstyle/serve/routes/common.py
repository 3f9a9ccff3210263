"""What the routes share: whose studio it is, who asks, and how pictures are answered."""

from typing import Annotated, cast

from fastapi import Depends, Header, Request, Response

from instantstyle.serve.studio import Studio

MAX_EVENT = 2**63 - 1
"""The largest number that SQLite holds."""


def studio_of(request: Request) -> Studio:
    """The studio that a request is for."""
    return cast("Studio", request.app.state.studio)


def client_of(
    request: Request,
    x_client_id: Annotated[
        str | None, Header(pattern=r"^[\w-]{1,64}$", description="Who asks, for fairness and limits.")
    ] = None,
) -> str:
    """Who asks: what a client calls itself, else its address."""
    return x_client_id or (request.client.host if request.client else "local")


In = Annotated[Studio, Depends(studio_of)]
Client = Annotated[str, Depends(client_of)]


def png_response(content: bytes, *, kept: bool = True) -> Response:
    caching = "private, max-age=31536000, immutable" if kept else "no-store"
    return Response(content, media_type="image/png", headers={"Cache-Control": caching})
