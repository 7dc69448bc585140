"""Answers to commands and options that other programs have: each names ours."""

from __future__ import annotations

from collections.abc import Sequence

from regard.errors import ConfigError

COMMANDS = {
    "val": "evaluate", "validate": "evaluate", "test": "evaluate", "eval": "evaluate", "score": "evaluate",
    "detect": "predict", "infer": "predict", "inference": "predict", "segment": "predict", "classify": "predict",
    "server": "serve", "deploy": "serve", "api": "serve", "fit": "train", "finetune": "train", "list": "models",
}  # fmt: skip

_FIRST = "name the run or the file first: regard {command} RUN"
_THRESHOLD = dict.fromkeys(("--conf", "--conf-thres", "--confidence", "--score-threshold"), "use --threshold")
_CHECKPOINT = dict.fromkeys(("--weights", "--model", "--checkpoint", "--ckpt"), _FIRST)
_OUTPUT = dict.fromkeys(("--name", "--project", "--save-dir", "--out-dir", "--output-dir"), "use --output FOLDER")
_SIZE = dict.fromkeys(("--imgsz", "--img-size", "--image-size"), "leave it out: images get the size of the training")
_BATCH = dict.fromkeys(("--batch", "--bs"), "use --batch-size")

OPTIONS: dict[str, dict[str, str]] = {
    "train": {
        **_OUTPUT,
        **dict.fromkeys(_SIZE, "set short_side=PIXELS"),
        **dict.fromkeys(_BATCH, "set batch_size=NUMBER"),
        "--weights": "set start_from=FILE",
        "--pretrained": "set start_from=FILE",
    },
    "evaluate": {**_CHECKPOINT, **_OUTPUT, **_SIZE, **_BATCH},
    "predict": {
        **_THRESHOLD,
        **{name: f"{answer} IMAGES" for name, answer in _CHECKPOINT.items()},
        **_OUTPUT,
        **_SIZE,
        **_BATCH,
        "--source": "name the images after the model: regard predict RUN IMAGES",
    },
    "export": {
        **_CHECKPOINT,
        **dict.fromkeys((*_SIZE, "--dynamic"), "leave it out: the file takes any size"),
        **dict.fromkeys(("--quantize", "--quantise"), "use --int8 --data DIR"),
    },
    "serve": {
        **_CHECKPOINT,
        **dict.fromkeys(("--bind", "--address", "--ip"), "use --host ADDRESS"),
        **dict.fromkeys(("--token", "--api-key"), "write it to a file: --token-file FILE"),
        **dict.fromkeys(("--workers", "--processes"), "start several servers, each with its own --port"),
    },
    "explain": {**_THRESHOLD, **{name: f"{answer} IMAGE" for name, answer in _CHECKPOINT.items()}, **_OUTPUT},
}


def check_names(words: Sequence[str]) -> None:
    """Check the words of a command line for names of other programs.

    Raises:
        ConfigError: one is found (C01); the remedy has our name for it.
    """
    command = words[0] if words else ""
    if command in COMMANDS:
        remedy = f"did you mean: regard {COMMANDS[command]}"
        raise ConfigError(f"unknown command {command!r}", remedy=remedy, code="C01")
    for word in words[1 : words.index("--") if "--" in words else None]:
        name = word.partition("=")[0]
        answer = OPTIONS.get(command, {}).get(name.replace("_", "-"))
        if answer is not None:
            raise ConfigError(f"unknown option {name!r}", remedy=answer.format(command=command), code="C01")
