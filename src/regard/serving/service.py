"""What the server does with a request: read, decode, compute, answer; off the event loop and within limits."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.datastructures import QueryParams
from starlette.requests import Request

from regard.errors import ConfigError, ImageError, RegardError, unknown_name
from regard.explanations.explain import explain, explain_stack
from regard.models.build import Detector
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import check_model, check_options
from regard.serving.answers import as_json, explanation_of, result_of, stack_of
from regard.serving.bodies import BODIES, Budget, boundary_of, count_images, images_in, read_body
from regard.serving.metrics import Metrics
from regard.serving.options import ServingOptions
from regard.serving.problems import ClientLeft, Problem, busy, of_error
from regard.serving.schema import AttentionOptions, ExplainOptions, PredictOptions
from regard.serving.served import ATTENTION_BYTES, STUCK, ServedModel
from regard.serving.worker import Expired, Full, Lost, Worker

EXPLAINED_AT_ONCE = 4  # explanations that wait or are computed, one after the other
Answer = tuple[str, bytes]  # media type and content
Item = TypeVar("Item")
_T = TypeVar("_T")


class Service:
    """All models of a server, and the threads that decode and compute for them.

    Args:
        models: at least one; the first answers requests that name none.
        options: of the server.
        metrics: of the server.
    """

    def __init__(self, models: Sequence[ServedModel], options: ServingOptions, metrics: Metrics) -> None:
        self.models = {model.name: model for model in models}
        self.options = options
        self.metrics = metrics
        self.budget = Budget(BODIES * options.max_bytes)
        self.draining = False
        self._pool = ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2), thread_name_prefix="decode")
        self._explainer: Worker[Callable[[], Answer], Answer] = Worker(
            "explanations", lambda items: [items[0]()], batch_size=1, capacity=EXPLAINED_AT_ONCE,
            patience=STUCK * options.timeout,
        )  # fmt: skip

    @property
    def workers(self) -> list[Worker[Any, Any]]:
        """All computing threads."""
        return [*(model.worker for model in self.models.values()), self._explainer]

    def start(self) -> None:
        """Start the threads."""
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        """End the threads after what they compute now."""
        for worker in self.workers:
            worker.stop()
        self._pool.shutdown(cancel_futures=True)

    def model(self, name: str | None) -> ServedModel:
        """Return a model by name; the first without one.

        Raises:
            Problem: there is no such model (404).
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise of_error(unknown_name("model", name, list(self.models)), 404)
        return self.models[name]

    def check_room(self, path: str, query: bytes) -> None:
        """Check, before anything of a request is read, that the model it asks for has room.

        Args:
            path: of its address.
            query: of its address. A model that does not exist is left to be refused as such.

        Raises:
            Problem: there is no room (503).
        """
        if path not in ("/v1/predict", "/v1/explain", "/v1/attention"):
            return
        worker: Worker[Any, Any] = self._explainer
        if path == "/v1/predict":
            name = QueryParams(query).get("model") if b"model" in query else None
            if name is not None and name not in self.models:
                return
            worker = self.model(name).worker
        try:
            worker.check_room()
        except Full as full:
            raise busy(full.seconds) from full

    def state(self) -> str:
        """Return `ready`, `draining`, or `stuck` if a computing thread does not come back."""
        if self.draining:
            return "draining"
        return "ready" if all(worker.is_ready for worker in self.workers) else "stuck"

    async def predict(self, request: Request, given: PredictOptions) -> Answer:
        """Answer /v1/predict.

        Raises:
            Problem: the request is refused or failed.
        """
        model = self.model(given.model)
        options = PredictionOptions(
            threshold=given.threshold, segments=given.segments, multi_label=given.multi_label, top=given.top
        )
        try:
            check_options(options, 1)
            check_model(model.net, options)
        except ConfigError as error:
            raise of_error(error, 400) from error
        return await self._in_turn(
            request, model.worker, lambda body, boundary: self._predict(model, body, boundary, options)
        )

    async def explain(self, request: Request, given: ExplainOptions) -> Answer:
        """Answer /v1/explain.

        Raises:
            Problem: the request is refused or failed.
        """
        model, point = self.model(given.model), _point(given.x, given.y)

        def compute(data: bytes) -> Answer:
            pixels = model.decode(data, "image")
            if given.what in ("encoder", "relevance"):
                _check_attention(model, pixels.shape[-2:])
            with model.turn:
                explanation = explain(
                    model.net, pixels, given.what, point=point, layer=given.layer, head=given.head,
                    threshold=given.threshold, query=given.query,
                )  # fmt: skip
            if given.format == "json":
                return "application/json", as_json({"model": model.name, **explanation_of(explanation)})
            picture = io.BytesIO()
            explanation.plot().save(picture, "PNG")
            return "image/png", picture.getvalue()

        return await self._explained(request, compute)

    async def attention(self, request: Request, given: AttentionOptions) -> Answer:
        """Answer /v1/attention.

        Raises:
            Problem: the request is refused or failed.
        """
        model, point = self.model(given.model), _point(given.x, given.y)

        def compute(data: bytes) -> Answer:
            pixels = model.decode(data, "image")
            size = pixels.shape[-2], pixels.shape[-1]
            if point is not None:
                _check_attention(model, size)
            with model.turn:
                stack = explain_stack(model.net, pixels, query=given.query, point=point, token=given.token)
            return "application/json", as_json({"model": model.name, **stack_of(stack, size)})

        return await self._explained(request, compute)

    async def _explained(self, request: Request, compute: Callable[[bytes], Answer]) -> Answer:
        async def answer(body: bytes, boundary: bytes | None) -> Answer:
            deadline = self._deadline()
            images = await self._images(body, boundary, deadline)
            if len(images) != 1:
                raise Problem(400, f"{len(images)} images, expected one to explain")
            job: Callable[[], Answer] = partial(compute, images[0])
            return await _computed(self._explainer, job, None, deadline)

        return await self._in_turn(request, self._explainer, answer)

    async def _in_turn(
        self,
        request: Request,
        worker: Worker[Any, Any],
        answer: Callable[[bytes, bytes | None], Coroutine[Any, Any, Answer]],
    ) -> Answer:
        """Read the body, then answer it if there is room, as long as the client is there."""
        boundary = boundary_of(request)
        try:
            with self.budget.share() as share:
                body = await read_body(request, share, self.options.max_bytes)
                count = count_images(body, boundary, self.options.max_images)
                with worker.admit(count):
                    return await _unless_left(request, answer(body, boundary))
        except Full as full:
            raise busy(full.seconds) from full

    async def _predict(
        self, model: ServedModel, body: bytes, boundary: bytes | None, options: PredictionOptions
    ) -> Answer:
        deadline = self._deadline()
        images = await self._images(body, boundary, deadline)
        many = len(images) > 1
        names = [f"image {number}" if many else "image" for number in range(1, len(images) + 1)]
        tasks = [
            asyncio.ensure_future(self._result(model, data, name, options, deadline))
            for data, name in zip(images, names, strict=True)
        ]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # if one failed as nobody foresaw, nobody waits for the others
                task.cancel()
        problems = [result for result in results if isinstance(result, Problem)]
        if len(problems) == len(results):  # nothing to answer with
            raise problems[0]
        threshold = options.threshold
        if threshold is None and isinstance(model.net, Detector):
            threshold = model.ready.threshold
        rows = [as_json(one.body()) if isinstance(one, Problem) else one for one in results]
        head = as_json({"model": model.name, "task": model.task, "threshold": threshold})
        return "application/json", b'%s,"results":[%s]}' % (head[:-1], b",".join(rows))

    async def _result(
        self, model: ServedModel, data: bytes, name: str, options: PredictionOptions, deadline: float
    ) -> bytes | Problem:
        """Return the JSON for one image, or its problem: the others of the request have nothing to do with it."""
        try:
            image = await self._aside(deadline, model.prepare, data, name)
            kind = (tuple(image.resized.shape), options)
            result = await _computed(model.worker, (image, options), kind, deadline)
            return await self._aside(deadline, lambda: as_json(result_of(result, options.top)))
        except ImageError as error:
            return of_error(error, 422)
        except Problem as problem:
            return problem

    async def _images(self, body: bytes, boundary: bytes | None, deadline: float) -> list[bytes]:
        """Return the image files of a body: itself, or what a form holds."""
        return [body] if boundary is None else await self._aside(deadline, images_in, body, boundary)

    def _deadline(self) -> float:
        return time.monotonic() + self.options.timeout

    async def _aside(self, deadline: float, function: Callable[..., _T], *arguments: Any) -> _T:
        """Run a function in the threads that decode. Raises Problem: it took too long."""
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *arguments))
        except TimeoutError as late:
            raise _late() from late


async def _computed(worker: Worker[Item, _T], item: Item, kind: Any, deadline: float) -> _T:
    """Compute one item. Raises Problem: it could not be."""
    try:
        return await worker.run(item, kind, deadline)
    except Expired as late:
        raise _late() from late
    except Lost as lost:
        raise busy(1) from lost
    except ImageError as error:
        raise of_error(error, 422) from error
    except ConfigError as error:
        raise of_error(error, 400) from error
    except RegardError as error:
        raise of_error(error, 500) from error


def _late() -> Problem:
    return Problem(504, "not answered within the deadline: the server is busy")


async def _unless_left(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of `work`, which is cancelled if the client leaves.

    Raises:
        ClientLeft: it did.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)  # its items have left their queues


def _check_attention(model: ServedModel, size: Sequence[int]) -> None:
    """Check what the weights of the encoder would take for an image of `size` (height, width).

    Raises:
        Problem: too much (422).
    """
    height, width = size
    short, longest = model.net.card.short_side, model.net.card.max_size
    scale = min(short / min(height, width), longest / max(height, width))
    if model.attention_bytes((round(height * scale), round(width * scale))) > ATTENTION_BYTES:
        remedy = "ask for what=decoder, or for the attention of a query"
        raise Problem(422, f"the attention of the encoder takes too much memory for this image — {remedy}")


def _point(x: float | None, y: float | None) -> tuple[float, float] | None:
    if (x is None) != (y is None):
        raise Problem(400, "a point needs both x and y")
    return None if x is None or y is None else (x, y)
