"""The web page of a study. It shows images under names that say nothing, and takes votes.

What keeps it safe: a rater is known by a random token of 256 bits in a cookie (HttpOnly, SameSite=Strict), and only its
hash is stored. The personal link carries the token behind the #, which browsers send to nobody and servers do not log.
Images are addressed by trial, never by method or file. The page runs its own script only (Content-Security-Policy) and
needs nothing from elsewhere. A request with a body is JSON of at most 4 KiB, checked field by field, and comes from
this page: another site cannot send one.
"""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Annotated, Any

from veridical.core.catalog import require
from veridical.core.errors import DataError
from veridical.core.untrusted import read_file
from veridical.study.design import study_folder
from veridical.study.store import Outcome, open_store

try:
    import sqlalchemy.exc
    import uvicorn
    from fastapi import Depends, FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.exceptions import HTTPException
except ImportError:
    for module in ("fastapi", "uvicorn", "sqlalchemy"):
        require(module, "study", "the page of a study")  # says which extra to install
    raise

MOST_BYTES = 4096
"""Of the body of a request."""

TOKEN_LENGTH = 43
"""Of 32 random bytes, as the store writes them in base64."""

_PAGES = Path(__file__).parent / "templates"
_KEPT_S = 90 * 24 * 3600  # how long a browser remembers a rater
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Consent(_Strict):
    """Whether a rater agrees to take part."""

    consent: bool


class Link(_Strict):
    """A rater comes back."""

    token: Annotated[str, Field(pattern=rf"^[A-Za-z0-9_-]{{{TOKEN_LENGTH}}}$")]


class Answer(_Strict):
    """A vote: which of the two images of a trial, after how many seconds."""

    trial: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{22}$")]
    choice: Annotated[int, Field(ge=1, le=2)]
    seconds: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]


class Nothing(_Strict):
    """A request that carries no data."""


def create_app(folder: Path, url: str | None = None) -> FastAPI:
    """The page of the study in `folder`, a study's or a run's.

    Args:   url: of the database; study.sqlite in the study's folder by default.
    Errors: DataError when there is no study, or its database cannot be used.
    """
    store = open_store(folder, url)
    images = study_folder(folder) / "images"
    pages = Environment(loader=FileSystemLoader(_PAGES), autoescape=True, undefined=StrictUndefined)
    design = store.design
    questions = design.trials + design.screening
    html = pages.get_template("study.html").render(
        title=design.title, contact=design.contact, questions=questions, minutes=design.minutes
    )
    cookie = f"study-{design.seed}-{design.created}".replace(":", "").replace("+", "")  # one name for each study

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        store.dispose()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(_Guard)

    def visitor(request: Request) -> int | None:
        """Whose cookie this is, if anybody's."""
        token = request.cookies.get(cookie, "")
        return store.rater_of(token) if len(token) == TOKEN_LENGTH else None

    def rater(found: Annotated[int | None, Depends(visitor)]) -> int:
        if found is None:
            raise HTTPException(401, "This browser has not begun.")
        return found

    def known(response: Response, request: Request, token: str) -> None:
        """Let the browser keep the token."""
        response.set_cookie(
            cookie, token, max_age=_KEPT_S, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )

    def state(number: int, token: str) -> dict[str, Any]:
        """Where a rater stands: what the page needs for this question, and to load the next one."""
        view = store.view(number)
        about = {"rater": view.rater, "done": view.done, "total": view.total, "closed": view.closed, "token": token}
        return {**about, "trials": list(view.trials[:2])}

    @app.get("/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        return HTMLResponse(html, headers={"cache-control": "no-store"})

    for name, kind in (("study.js", "text/javascript"), ("study.css", "text/css")):
        app.add_api_route(f"/{name}", _file(_PAGES / name, kind), methods=["GET"])

    @app.post("/api/begin")
    def begin(given: Consent, request: Request, response: Response) -> dict[str, Any]:
        if not given.consent:
            raise HTTPException(403, "Nobody takes part without having agreed.")
        made = store.begin()
        if made is None:
            raise HTTPException(409, "Nothing is left to ask at the moment.")
        known(response, request, made.token)
        return state(made.number, made.token)

    @app.post("/api/resume")
    def resume(link: Link, request: Request, response: Response) -> dict[str, Any]:
        number = store.rater_of(link.token)
        if number is None:
            raise HTTPException(404, "This link is not known.")
        known(response, request, link.token)
        return state(number, link.token)

    @app.get("/api/state")
    def stand(number: Annotated[int | None, Depends(visitor)], request: Request) -> dict[str, Any] | None:
        return state(number, request.cookies[cookie]) if number is not None else None

    @app.post("/api/vote")
    def vote(answer: Answer, number: Annotated[int, Depends(rater)], request: Request) -> dict[str, Any]:
        outcome = store.vote(number, answer.trial, answer.choice, answer.seconds)
        if outcome is Outcome.UNKNOWN:
            raise HTTPException(404, "There is no such question.")
        return {"outcome": outcome.value, **state(number, request.cookies[cookie])}

    @app.post("/api/more")
    def more(_nothing: Nothing, number: Annotated[int, Depends(rater)], request: Request) -> dict[str, Any]:
        if not store.more(number):
            raise HTTPException(409, "Nothing is left to ask you.")
        return state(number, request.cookies[cookie])

    @app.get("/image/{trial}/{what}")
    def image(trial: str, what: str, number: Annotated[int, Depends(rater)]) -> Response:
        file = store.file(number, trial, what)
        if file is None:
            raise HTTPException(404, "There is no such image.")
        # The address is of this trial alone and its image never changes; no ETag, which would be the same for a method.
        kept = {"cache-control": "private, max-age=86400, immutable"}
        # A link would show the world what only whoever serves the study can read.
        if (images / file).is_symlink():
            raise HTTPException(404, "There is no such image.")
        return Response(read_file(images / file), media_type="image/webp", headers=kept)

    @app.exception_handler(HTTPException)
    def refuse(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(_request: Request, _error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": "The request is not what was expected."}, 422)  # without repeating what came

    @app.exception_handler(sqlalchemy.exc.DBAPIError)
    def busy(_request: Request, _error: sqlalchemy.exc.DBAPIError) -> JSONResponse:
        return JSONResponse({"error": "The answers cannot be stored now."}, 503, headers={"retry-after": "2"})

    return app


def _file(path: Path, kind: str) -> Callable[[], Response]:
    text = path.read_bytes()
    return lambda: Response(text, media_type=kind, headers={"cache-control": "no-cache"})


class _Guard:
    """Before anything reads a request: its size, its kind, where it comes from. And the headers of every answer."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *ours]
            await send(message)

        if scope["method"] != "POST":
            await self._app(scope, receive, send_guarded)
            return
        headers = dict(scope["headers"])
        refusal = None
        if headers.get(b"sec-fetch-site", b"same-origin") != b"same-origin":
            refusal = (403, "Only the page of the study may send this.")
        elif headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            refusal = (415, "Expected application/json.")
        body = b"" if refusal else await _body(receive)
        if body is None:
            refusal = (413, f"Expected at most {MOST_BYTES} bytes.")
        if refusal:
            await JSONResponse({"error": refusal[1]}, refusal[0])(scope, receive, send_guarded)
            return
        read = False

        async def receive_again() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_again, send_guarded)


async def _body(receive: Receive) -> bytes | None:
    """The body of a request, or None as soon as it is too long."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body", False):
            return body


def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    url: str | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the page of a study until the process is stopped. No request is logged: no address is kept anywhere.

    Args:   port: 0 takes any that is free. on_ready: called with the page's address once it can be opened.
    Errors: DataError when there is no study, its database cannot be used, or the port is taken.
    """
    app = create_app(folder, url)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise DataError(f"cannot listen on {host}, port {port}: {error.strerror}. Choose another --port.") from error
    if on_ready:
        at = f"[{host}]" if ":" in host else host
        on_ready(f"http://{at}:{listening.getsockname()[1]}/")
    # People look at three images for longer than the 5 s after which a connection would be closed.
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[listening])
