"""The application: addresses, options and answers. `schema.py` describes them, `service.py` does the work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from regard import __version__
from regard.errors import unknown_name
from regard.serving.guard import LEFT, Guard
from regard.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from regard.serving.options import ServingOptions
from regard.serving.page_files import POLICY, page_files
from regard.serving.problems import ClientLeft, Problem, of_error
from regard.serving.schema import IMAGES, AttentionOptions, ExplainOptions, PredictOptions, answers_of
from regard.serving.service import Answer, Service

PATHS = ("/v1/predict", "/v1/explain", "/v1/attention", "/v1/model", "/v1/models", "/healthz", "/readyz", "/metrics")
OPTIONS: dict[str, type[BaseModel]] = {
    "/v1/predict": PredictOptions,
    "/v1/explain": ExplainOptions,
    "/v1/attention": AttentionOptions,
}


def make_app(service: Service, options: ServingOptions, metrics: Metrics) -> Guard:
    """Return the application of a service, an ASGI application; its threads run within its lifespan."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="Regard", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,  # from other hosts
        description="Predictions and attention of vision models. Errors are one line in `error.message`.",
    )  # fmt: skip
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(ClientLeft, _nobody)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _wrong_option)
    app.add_exception_handler(Exception, _failed)
    _add_models(app, service)
    _add_state(app, service, metrics)
    _add_page(app)
    return Guard(app, options, metrics, (*PATHS, "/openapi.json", "/"), service.check_room)


def _add_models(app: FastAPI, service: Service) -> None:
    """Add the addresses at which models answer."""

    async def predict(request: Request, options: Annotated[PredictOptions, Query()]) -> Response:
        """Find objects, segments or classes in one or several images.

        The answer has a result for each image, in order. An image that cannot be decoded has an `error` in its place;
        if none can be, the status is 422.
        """
        return _response(await service.predict(request, options))

    async def explain(request: Request, options: Annotated[ExplainOptions, Query()]) -> Response:
        """Show where a model looks in an image: maps of one kind, as `regard explain` draws them."""
        return _response(await service.explain(request, options))

    async def attention(request: Request, options: Annotated[AttentionOptions, Query()]) -> Response:
        """Return the attention of one place, a query, a point or a token, in all layers and heads at once.

        `data` of a layer is base64 of its weights, float32, little-endian, in the order of `shape`: heads, rows,
        columns.
        """
        return _response(await service.attention(request, options))

    endpoints: tuple[Callable[..., Awaitable[Response]], ...] = (predict, explain, attention)
    for path, endpoint in zip(OPTIONS, endpoints, strict=True):
        app.post(path, responses=answers_of(path), openapi_extra=IMAGES)(endpoint)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the models: their classes, sizes, thresholds, layers, heads and kinds of explanation."""
        return {"models": [model.description for model in service.models.values()]}

    @app.get("/v1/model")
    async def model(model: Annotated[str | None, Query(max_length=64)] = None) -> dict[str, Any]:
        """Describe one model; the first if none is named. `limits` are those of requests."""
        limits = {
            "max_bytes": service.options.max_bytes,
            "max_images": service.options.max_images,
            "timeout": service.options.timeout,
        }
        return {**service.model(model).description, "limits": limits}


def _add_state(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """Add the addresses that watch over the server."""

    @app.head("/healthz", include_in_schema=False)  # load balancers ask so
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Return 200 as long as the process answers at all."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz() -> Response:
        """Return 200 if requests should be sent here, 503 while the server drains or a model is stuck."""
        state = service.state()
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @app.get("/metrics")
    async def figures() -> Response:
        """Return figures in Prometheus' text format."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _add_page(app: FastAPI) -> None:
    """Add the page: its files by their names, from memory."""
    files = page_files()

    @app.get("/{name:path}", include_in_schema=False)
    async def page(name: str) -> Response:
        if f"/{name}" in OPTIONS:
            raise Problem(405, "send an image: POST, not GET", headers={"Allow": "POST"})
        file = files.get(name or "index.html")
        if file is None:
            raise Problem(404, "no such address")
        headers = {"Content-Security-Policy": POLICY, "Content-Type": file.media_type}
        return Response(file.content, headers=headers)


def _response(answer: Answer) -> Response:
    media_type, content = answer
    return Response(content, media_type=media_type)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response(request.scope.get("regard_id"))


async def _nobody(request: Request, error: Exception) -> Response:
    """Answer a client that has left: uvicorn drops this."""
    return Response(status_code=LEFT)


async def _http_problem(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: unknown addresses and methods."""
    assert isinstance(error, HTTPException)
    message = "no such address" if error.status_code == 404 else str(error.detail).lower()
    return await _problem(request, Problem(error.status_code, message, headers=error.headers))


async def _failed(request: Request, error: Exception) -> Response:
    """Answer an error that nobody expected; `Guard` writes it to the log."""
    return await _problem(request, Problem(500, "the server failed: its log says more under this request_id"))


async def _wrong_option(request: Request, error: Exception) -> Response:
    """Answer a wrong option with its name, and the nearest one if it is unknown."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "options"
    kind = OPTIONS.get(request.url.path)
    if first["type"] == "extra_forbidden" and kind is not None:
        return await _problem(request, of_error(unknown_name("option", name[:64], list(kind.model_fields)), 400))
    expected = re.sub(r"^Input should be ", "expected ", first["msg"])
    return await _problem(request, Problem(400, f"{name[:64]}={str(first.get('input'))[:64]}: {expected}"))
