"""`instantstyle serve`: the studio, a page and an API, on this machine or behind a token on others."""

import os
from pathlib import Path
from typing import Annotated

import typer

SERVE_EXAMPLES = """Examples:

    instantstyle serve                                   the page opens at http://127.0.0.1:7860

    instantstyle serve --model sdxl --adapter h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors

    instantstyle serve --host 0.0.0.0 --token "$(openssl rand -hex 16)" --no-open

The API: docs/api.md, and /openapi.json of the server."""


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on; any but this machine's own needs --token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 is any that is free.")] = 7860,
    model: Annotated[str, typer.Option(help="emoji, sdxl, sd15, a folder in diffusers' layout or a hub id.")] = "emoji",
    adapter: Annotated[str | None, typer.Option(help="IP-Adapter weights.", show_default="the model's")] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="INSTANTSTYLE_TOKEN",
            help="What clients must send as `Authorization: Bearer TOKEN`; the page asks for it.",
            show_default="none",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The folder of jobs, pictures and styles.", show_default="~/.local/share/instantstyle/studio"
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name this server is called by, beside its address; may be given often.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may use the API, as https://my.example.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Jobs that are drawn together.")] = 8,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Whether a browser opens the page.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Run the studio: a page on which a style follows a slider, and an API under it."""
    from instantstyle.cli.progress import hush
    from instantstyle.errors import InputError, InstantStyleError

    try:
        from instantstyle.serve.app import create_app
        from instantstyle.serve.guards import is_loopback
        from instantstyle.serve.server import default_data_folder, listen, run_server
        from instantstyle.serve.studio import Studio
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("instantstyle"):
            raise
        raise InstantStyleError(
            f"the studio needs {missing.name}, which is not installed: pip install 'instantstyle[serve]'"
        ) from None
    if not is_loopback(host) and not token:
        raise InputError(
            f"--host {host} lets other machines in, so a --token is needed: any secret text, or set INSTANTSTYLE_TOKEN"
        )
    if token is not None and (len(token) < 8 or not token.isascii() or not token.isprintable()):
        raise InputError("a --token is at least 8 printable ASCII characters")
    hush()

    def load_model():
        from instantstyle.loading import load

        return load(model, adapter=adapter, device=device, dtype=dtype)

    try:
        held = listen(host, port)
    except OSError as refused:
        raise InputError(
            f"cannot listen on {host} port {port}: {os.strerror(refused.errno or 0).lower()}; give another --port"
        ) from None
    studio = Studio(data or default_data_folder(), load_model, batch=batch, spec=model)
    app = create_app(
        studio,
        token=token,
        hosts=[*(allow_host or []), *([] if is_loopback(host) else [host])],
        any_address=not is_loopback(host),
        origins=allow_origin or [],
    )
    bound = held.getsockname()[1]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{bound}"
    typer.echo(address)
    typer.echo(f"pictures and jobs are kept in {studio.files.folder.parent}; Ctrl+C ends", err=True)
    run_server(app, studio.board, held, open_page=(lambda: address) if open_page else None)
