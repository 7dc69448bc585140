"""Models behind HTTP: `regard serve`.

A request goes through `guard.py` (who may ask), `app.py` (addresses), `service.py` (read, decode, compute, answer) and
`worker.py` (a thread for each model behind a queue of limited length). `protocol.py` and `server.py` hold uvicorn to
deadlines and limits. Nothing that a client sends is used as a path, an address or a name of a file.

The static page lives in `page/`: files there are read at the start and served by their names from `/`, with a policy
(`page_files.POLICY`) that allows scripts, styles and pictures of this server alone, and no code within the HTML.

What the page can ask, each with a relative address, so that it works behind a prefix of a proxy too:

* `GET v1/models`: all models, to choose one or two of them. Of each: `task`, `classes`, `threshold`, `input`, `masks`,
  `multi_label`, `queries`, `explanations` (kinds with the options that each uses), `tokens`, `max_pixels`, and
  `attention`: for each source of attention (`query`, `point`, `token`) the layers with their number of heads, which are
  the positions of its sliders. A model without attention, such as an ONNX file, has none: hide what is empty.
* `GET v1/model?model=NAME`: one of them, with the `limits` of requests.
* `POST v1/predict?model=NAME&threshold=0` with the photograph as the body: all boxes with scores, `query` and masks. A
  slider of the threshold filters these without asking again. Segments of panoptic models depend on the threshold: ask
  again. `top` is the number of classes of a classifier. Boxes and sizes are in pixels of the image as displayed, after
  its EXIF orientation, as browsers show it.
* `POST v1/attention?query=Q`, or `?x=X&y=Y` in pixels, or `?token=0`: the attention of a box, of a pixel, or of a class
  token, in all layers and heads with one request: sliders of layer and head, and the mean over heads, need no other.
  `data` of a layer is base64 of float32: `new Float32Array(Uint8Array.from(atob(data), c => c.charCodeAt(0)).buffer)`,
  in the order of `shape`, (heads, rows, columns); `extent` is the area of its cells in pixels, which may be larger than
  the image or, of classifiers, a part of it.
* `POST v1/explain?what=KIND`: all other kinds (rollout, relevance, ...) as arrays, or as a picture with `format=png`.

Errors are `{"error": {"code", "message", "request_id"}}` with one line to show. 503 has Retry-After in seconds. With
`--token-file` the files of the page are open, and its requests below `v1/` need `Authorization: Bearer TOKEN`: ask for
the token at a 401. There is nothing to store: the page sends the photograph again with each question.
"""

from __future__ import annotations
