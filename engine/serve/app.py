"""The routes."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from engine.errors import UserError
from engine.serve.errors import APIError, as_api_error, of_validation
from engine.serve.forms import ChatForm, TextForm
from engine.serve.guard import Guard
from engine.serve.schema import ChatBody, TextBody
from engine.serve.service import Service

_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_ERRORS = {
    400: {"description": "A field is wrong, or is not supported."},
    401: {"description": "The key is missing or wrong."},
    413: {"description": "The body is too large."},
    429: {"description": "Too many requests wait."},
    503: {"description": "The server is being stopped."},
}


def make_app(service: Service) -> Guard:
    """The application: an API in OpenAI's form, and a page for people."""
    app = FastAPI(title="ttc", version=version("ttc-engine"), docs_url=None, redoc_url=None, responses=_ERRORS)
    _add_completions(app, service)
    _add_facts(app, service)
    for kind in (APIError, UserError, Exception):
        app.add_exception_handler(kind, _tell)
    app.add_exception_handler(RequestValidationError, _tell_of_body)
    app.add_exception_handler(HTTPException, _tell_of_route)
    return Guard(app, api_key=service.config.api_key, max_body_bytes=service.config.max_body_bytes)


def _add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody) -> Response:
        return await service.complete(body, ChatForm, lambda: service.prompts.of_chat(body.messages))

    @app.post("/v1/completions")
    async def text(body: TextBody) -> Response:
        return await service.complete(body, TextForm, lambda: service.prompts.of_text(body.prompt[0]))


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> JSONResponse:
        names = [service.models.name, *service.aliases]
        fields = {"object": "model", "created": service.created, "owned_by": "ttc"}
        return JSONResponse({"object": "list", "data": [{"id": name, **fields} for name in names]})

    @app.get("/health")
    async def health() -> JSONResponse:
        state = ("draining", 503) if service.desk.is_draining else ("ok", 200)
        return JSONResponse({"status": state[0]}, state[1])

    @app.get("/version")
    async def of_package() -> JSONResponse:
        return JSONResponse({"version": app.version})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.desk.metrics.page(), media_type=_METRICS)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        return HTMLResponse(service.page)


async def _tell(_: Request, error: Exception) -> JSONResponse:
    known = as_api_error(error)
    return JSONResponse(known.body, known.status, headers=dict(known.headers))


async def _tell_of_body(_: Request, error: RequestValidationError) -> JSONResponse:
    known = of_validation(error.errors())
    return JSONResponse(known.body, known.status)


async def _tell_of_route(request: Request, error: HTTPException) -> JSONResponse:
    """No such route, or not by this method, or a body that is no JSON."""
    known = APIError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(known.body, known.status, headers=error.headers)
