"""Page: serve the page that shows a user's stream, three files of this package and nothing from another host."""

from collections.abc import Awaitable, Callable
from importlib import resources

from aiohttp import web

FILES = {
    "/": ("index.html", "text/html"),
    "/static/page.css": ("page.css", "text/css"),
    "/static/page.js": ("page.js", "text/javascript"),
}

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # The token is in the fragment, which browsers never send; this hides even the address from other hosts.
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def routes() -> list[web.RouteDef]:
    """Return the page's routes. The files are read once, at start."""
    return [web.get(path, _serve(name, content_type)) for path, (name, content_type) in FILES.items()]


def _serve(name: str, content_type: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    body = resources.files("gateway.live").joinpath("static", name).read_bytes()

    async def serve(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=HEADERS)

    return serve
