"""`regard.optimize`: the same model, the same answers, sooner.

The engine is a copy of a model for inference. Its outputs equal the model's up to the rounding of float32. It has the
model's class, so it is used where the model is used; the model stays as it is. What it does was measured one by one on
a CPU (docs/results/speed.md), and what gained nothing was left out:

* batch norms, which are constants in evaluation, are folded into the convolutions before them (`convolutions.py`);
* activations and residual sums are done by the kernel of the convolution, with channels last in memory;
* of a DETR, only the last decoder layer gets classes and, unless the next layer needs them, boxes;
* linear layers are computed by oneDNN on processors on which torch's matrix products are slow (`linear.py`).

Vision transformers run at the speed of their matrix products: where those are fast, their engine is a copy.
"""

from __future__ import annotations

from regard.models.engine.engines import Optimized as Optimized
from regard.models.engine.engines import engine_of as engine_of
from regard.models.engine.engines import optimize as optimize
