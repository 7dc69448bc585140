"""Studies of DETR: Carion et al. 2020, with `detr_tiny` on generated images.

`detr_tiny` is DETR with later findings: plain DETR needs hundreds of epochs. `later_findings` shows what each is worth;
where a study needs DETR's learned queries, its rows say so. `--full` trains DETR-R50 on COCO by the paper's recipe, 300
epochs.
"""

from __future__ import annotations

from regard.errors import counted
from regard.studies.detector_measures import COPIES, attention, copies, decoder_layers, query_slots
from regard.studies.study import RUN, Row, Scale, Study, generated_objects

CARION = "Carion et al. 2020, End-to-End Object Detection with Transformers"
AP = "AP of DETR-R50 on COCO in %"
FIGURE = "no numbers, a figure"
EPOCHS, MINUTES = 12, 14.0  # minutes of a run of `ENCODER` on one core
HARD = "shapes_hard"
TINY, ENCODER = ("detr_tiny",), ("detr_tiny", "model.encoder_layers=1")
LEARNED = (*ENCODER, "model.anchors=false", "model.denoising_groups=0")  # learned queries
FULL = ("detr_resnet50", "--recipe", "paper")
FAST = ("detr_resnet50", "--recipe", "fast")
LONG = ("epochs=500", "milestones=0.8")  # of the paper, for its table 1 and figure 4
PLAIN_LAYERS = ("model.norm_first=false", "model.dropout=0.1")
PLAIN_LOSS = ("model.sigmoid=false", "class_weight=1")
PLAIN_QUERIES = ("model.anchors=false", "model.denoising_groups=0", "model.query_groups=1")
NO_GROUPS = ("model.denoising_groups=0", "model.query_groups=1")
PLAIN = (*PLAIN_QUERIES, *PLAIN_LOSS, *PLAIN_LAYERS)
SHORT = ("epochs=50", "milestones=0.8")  # epochs of COCO in the papers of the later findings
MODERN = ("model.norm_first=true", "model.dropout=0")
FOCAL = ("model.sigmoid=true", "class_weight=2", "model.num_queries=300")
ANCHORS = "model.anchors=true"
NOISED = "model.denoising_groups=5"


def often_evaluated(scale: Scale) -> list[str]:
    """Words for at least four evaluations, each of which draws attention."""
    return [*generated_objects(scale)[1:], f"evaluate_every={max(1, scale.epochs // 4)}"]


def _with(name: str, published: float | None, *settings: str, base: tuple[str, ...] = ENCODER) -> Row:
    """Return a row whose settings are the same at both scales."""
    return Row(name=name, words=(*base, *settings), full=(*FULL, *settings), published=published)


def _finding(name: str, published: float | None, words: tuple[str, ...], full: tuple[str, ...]) -> Row:
    return Row(name=name, words=(*TINY, *words), full=(*FULL, *SHORT, *full), published=published)


def _layer(layer: int, suppressed: bool) -> Row:
    """Return a row of the one model whose layers are compared."""
    suffix = "_suppressed" if suppressed else ""
    return Row(
        name=f"layer {layer}{', suppressed' if suppressed else ''}", words=(*ENCODER, "model.decoder_layers=6"),
        full=(*FULL, *LONG), statistic=f"AP_{layer}{suffix}",
        published_difference=8.2 if layer == 6 and not suppressed else None,
    )  # fmt: skip


def _encoder(layers: int, like: int, published: float) -> Row:
    full = (*FULL, f"model.encoder_layers={like}")
    name = f"{counted(layers, 'layer')} (the paper: {like})"
    return Row(name=name, words=(*TINY, f"model.encoder_layers={layers}"), full=full, published=published)


def _feedforward(channels: int, like: int, published: float | None = None, difference: float | None = None) -> Row:
    name = f"{channels} channels (the paper: {like})" if channels else "none"
    return Row(
        name=name, words=(*ENCODER, f"model.feedforward_dim={channels}"), published=published,
        published_difference=difference, full=(*FULL, f"model.feedforward_dim={like}"),
    )  # fmt: skip


def _published(name: str, published: float, model: str = "") -> Row:
    """Return a row of table 1 that has no small network; without `model` one that is not here."""
    return Row(name=name, full=(model, "--recipe", "paper", *LONG) if model else (), published=published)


DETR: dict[str, Study] = {
    "detectors": Study(
        question="Does DETR detect as well as a detector with anchors and suppression?",
        source=f"{CARION}, table 1; RetinaNet stands for Faster R-CNN",
        published="AP on COCO in %",
        baseline="RetinaNet (the paper: Faster R-CNN-FPN+)",
        task="detection",
        statistic="AP",
        data=HARD,
        epochs=EPOCHS,
        minutes=MINUTES,
        common=generated_objects,
        full_data="coco/",
        rows=(
            Row(name="RetinaNet (the paper: Faster R-CNN-FPN+)", words=("retinanet_tiny",), published=42.0),
            Row(name="DETR", words=ENCODER, full=(*FULL, *LONG), published=42.0),
            _published("DETR-DC5", 43.3, "detr_resnet50_dc5"),
            _published("Faster R-CNN-R101-FPN+", 44.0),
            _published("DETR-R101", 43.5, "detr_resnet101"),
            _published("DETR-DC5-R101", 44.9, "detr_resnet101_dc5"),
        ),
    ),
    "encoder_layers": Study(
        question="What is self-attention among all places of the image worth before objects are decoded?",
        source=f"{CARION}, table 2",
        published=AP,
        baseline="0 layers (the paper: 0)",
        task="detection",
        statistic="AP",
        data=HARD,
        epochs=EPOCHS,
        minutes=MINUTES,
        common=generated_objects,
        full_data="coco/",
        rows=(_encoder(0, 0, 36.7), _encoder(1, 3, 40.1), _encoder(2, 6, 40.6), _encoder(4, 12, 41.6)),
    ),
    "decoder_layers": Study(
        question="Does each decoder layer improve boxes, and is suppression of duplicates still needed?",
        source=f"{CARION}, figure 4 and section 4.2: AP rises with every layer, by 8.2 in all, to 42.0; suppression "
        "helps the first layer and costs a little at the last",
        published=AP,
        baseline="layer 1",
        task="detection",
        statistic="AP_6",
        measure=decoder_layers,
        data=HARD,
        epochs=EPOCHS,
        minutes=1.3 * MINUTES,
        common=generated_objects,
        full_data="coco/",
        rows=tuple(
            _layer(layer, suppressed) for suppressed in (False, True) for layer in range(1, 7)
        ),
    ),
    "feedforward": Study(
        question="Are the feed-forward layers needed beside attention?",
        source=f"{CARION}, section 4.2: without them AP drops by 2.3 from 40.6",
        published=AP,
        baseline="256 channels (the paper: 2048)",
        task="detection",
        statistic="AP",
        data=HARD,
        epochs=EPOCHS,
        minutes=MINUTES,
        common=generated_objects,
        full_data="coco/",
        rows=(_feedforward(0, 0, difference=-2.3), _feedforward(64, 512), _feedforward(256, 2048, 40.6)),
    ),
    "detr_positions": Study(
        question="Which position encodings does DETR need, and where?",
        source=f"{CARION}, table 3; our networks with learned queries, pre-norm and focal loss",
        published=AP,
        baseline="sine, at attention",
        task="detection",
        statistic="AP",
        data="shapes",
        epochs=EPOCHS,
        minutes=MINUTES,
        common=generated_objects,
        full_data="coco/",
        rows=tuple(
            _with(name, published, f"model.position_encoding={kind}", f"model.positions_at={place}", base=LEARNED)
            for name, kind, place, published in (
                ("none, queries at input", "none", "input", 32.8),
                ("sine, at input", "sine", "input", 39.2),
                ("learned, at attention", "learned", "attention", 39.6),
                ("sine, at attention of the decoder", "sine", "decoder", 39.3),
                ("sine, at attention", "sine", "attention", 40.6),
            )
        ),
    ),
    "detr_losses": Study(
        question="Which losses does DETR need, and on which layers?",
        source=f"{CARION}, table 4 and section 3.2",
        published=AP,
        baseline="class, L1 and GIoU",
        task="detection",
        statistic="AP",
        data="shapes",
        epochs=EPOCHS,
        minutes=MINUTES,
        common=generated_objects,
        full_data="coco/",
        rows=(
            _with("class and L1", 35.8, "giou_weight=0"),
            _with("class and GIoU", 39.9, "bbox_weight=0"),
            _with("class, L1 and GIoU", 40.6),
            _with("of the last layer alone", None, "auxiliary_losses=false"),
        ),
    ),
    "queries": Study(
        question="How many queries does DETR need for a few objects in an image?",
        source=f"{CARION}, section 4: 100 queries for up to 63 objects",
        published=AP,
        baseline="10 queries",
        task="detection",
        statistic="AP",
        data=HARD,
        epochs=EPOCHS,
        minutes=1.2 * MINUTES,
        common=generated_objects,
        full_data="coco/",
        rows=(
            # COCO has an image of 63 objects: fewer queries are refused.
            Row(name="8 queries, as many as objects", words=(*ENCODER, "model.num_queries=8")),
            Row(name="10 queries", words=ENCODER, full=FULL, published=40.6),
            *(
                Row(
                    name=f"{count} queries", words=(*ENCODER, f"model.num_queries={count}"),
                    full=(*FULL, f"model.num_queries={10 * count}"),
                )
                for count in (25, 50)
            ),
        ),
    ),
    "more_objects": Study(
        question="Does DETR find more objects of a class than any training image has?",
        source=f"{CARION}, figures 5 and 12: all of 24 giraffes, where training images have at most 13; all of 50 "
        "equal objects, 30 of 100",
        published="share of objects found in %",
        baseline=f"{COPIES[1]} objects, the most in training",
        task="detection",
        statistic=f"found_{COPIES[1]}",
        measure=copies,
        # Objects are small, so that there is room for 20 of them.
        data="shapes:size=96,min_scale=0.12,max_scale=0.2,train=3000",
        epochs=EPOCHS,
        minutes=1.7 * MINUTES,
        common=generated_objects,
        generated=True,
        rows=tuple(
            Row(
                name=f"{count} object{'s' * (count > 1)}{note}", published=published, statistic=f"found_{count}",
                words=(*ENCODER, "short_side=96", "max_size=96", f"model.num_queries={COPIES[-1]}"),
            )
            for count, note, published in zip(
                COPIES, ("", ", the most in training", ", half of the queries", ", all queries"),
                (None, None, 100.0, 30.0), strict=True,
            )
        ),
    ),
    "query_slots": Study(
        question="Does each query look for objects in a place of its own?",
        source=f"{CARION}, figure 7; query_places.png in each run is our figure",
        published=FIGURE,
        baseline="learned queries",
        task="detection",
        statistic="explained",
        measure=query_slots,
        data="shapes",
        epochs=EPOCHS,
        minutes=MINUTES,
        common=generated_objects,
        full_data="coco/",
        rows=(
            Row(name="learned queries", words=LEARNED, full=FULL),
            Row(name="anchors", words=ENCODER, full=FAST),
            Row(name="proposals of the image", words=(*ENCODER, "model.proposals=true")),
        ),
    ),
    "attention_in_training": Study(
        question="How does a query's attention become that to one object?",
        source=f"{CARION}, figure 6; attention_over_training.jpg in each run is our figure",
        published=FIGURE,
        baseline="learned queries",
        task="detection",
        statistic="inside",
        measure=attention,
        data="shapes",
        epochs=EPOCHS,
        minutes=MINUTES,
        common=often_evaluated,
        full_data="coco/",
        rows=(
            Row(name="learned queries", words=LEARNED, full=FULL),
            Row(name="anchors", words=ENCODER, full=FAST),
            Row(name="anchors: cells in the box", words=ENCODER, statistic="area"),
        ),
    ),
    "panoptic_stages": Study(
        question="Are masks to be learned together with boxes, or after them?",
        source=f"{CARION}, section 4.4: similar results; table 5 is of two stages",
        published="PQ of DETR-R50 on COCO in %",
        baseline="together",
        task="panoptic",
        statistic="PQ",
        data="shapes",
        epochs=4,
        minutes=12.0,
        common=generated_objects,
        full_data="coco/",
        rows=(
            Row(name="together", words=("detr_tiny_panoptic",), full=("detr_resnet50_panoptic", "--recipe", "paper")),
            Row(
                name="boxes (AP)", words=("detr_tiny", "annotations=panoptic", "model.num_queries=15"), longer=1.5,
                full=("detr_resnet50", "--recipe", "panoptic_boxes"), statistic="AP", step=True,
            ),
            Row(
                name="then masks", words=("detr_tiny_panoptic", "freeze_detector=true", f"start_from={RUN}boxes (AP)"),
                full=("detr_resnet50_panoptic", "--recipe", "panoptic_masks", f"start_from={RUN}boxes (AP)"),
                published=43.4, longer=0.5,
            ),
        ),
    ),
    "later_findings": Study(
        question="What does each of the later findings add to plain DETR in a short training?",
        source="50 epochs of DETR-R50 as reported for Conditional DETR (Meng et al. 2021); DAB-DETR (Liu et al. 2022), "
        "DN-DETR (Li et al. 2022); groups: Chen et al. 2022",
        published="AP of R50 after 50 epochs of COCO in %",
        baseline="plain DETR",
        task="detection",
        statistic="AP",
        data="shapes",
        epochs=EPOCHS,
        minutes=MINUTES,
        common=generated_objects,
        full_data="coco/",
        rows=(
            _finding("plain DETR", 34.8, PLAIN, ()),
            _finding("+ pre-norm, no dropout", None, (*PLAIN_QUERIES, *PLAIN_LOSS), MODERN),
            _finding("+ focal loss", None, PLAIN_QUERIES, (*MODERN, *FOCAL)),
            _finding("+ anchors", 42.2, NO_GROUPS, (*MODERN, *FOCAL, ANCHORS)),
            _finding("+ denoising", 44.4, ("model.query_groups=1",), (*MODERN, *FOCAL, ANCHORS, NOISED)),
            _finding("+ query groups: detr_tiny", None, (), (*MODERN, *FOCAL, ANCHORS, NOISED, "model.query_groups=3")),
        ),
    ),
}  # fmt: skip
