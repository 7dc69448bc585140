"""`regard.augment`: attention in the convolutions of any CNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from regard.attention import AugmentedConv2d, attention_channels
from regard.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Replacement:
    """One convolution that was augmented.

    name: name of the layer. map_size: height and width of its output.
    channels: channels of its output; `value_channels` of them come from attention. pooled: whether attention works
    at half the size. parameters: before and after.
    """

    name: str
    map_size: tuple[int, int]
    channels: int
    key_channels: int
    value_channels: int
    pooled: bool
    parameters: tuple[int, int]


def augment(
    module: nn.Module,
    *,
    layers: Sequence[str] | None = None,
    image_size: int | tuple[int, int] = 224,
    key_ratio: float = 0.25,
    value_ratio: float = 0.25,
    num_heads: int = 8,
    largest_map: int = 28,
    position: str = "relative",
    quiet: bool = False,
) -> nn.Module:
    """Replace convolutions of a CNN by augmented ones, in place, and print a table of the replacements.

    The paper's rule: in every block the first convolution larger than 1x1, on maps of at most `largest_map` cells a
    side; on the largest of these, attention works at half the size. Remaining channels of the convolution keep their
    weights; attention starts from random ones.

    Args:
        module: a CNN that takes images (B, 3, H, W).
        layers: names of the convolutions to replace instead, as in `module.named_modules()`.
        image_size: side or (height, width) of the images in pixels; other sizes work too.
        key_ratio: kappa of the paper; see `attention_channels`.
        value_ratio: upsilon of the paper.
        num_heads: number of heads.
        largest_map: maximum side of a map that is augmented, in cells.
        position: as in `AugmentedConv2d`.
        quiet: print nothing.

    Returns:
        `module`; `module.augmented` lists each `Replacement`.

    Raises:
        ConfigError: no convolution fits, or a name or number is wrong. The network is unchanged then.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width, num_heads) < 1:
        raise ConfigError(f"image_size={image_size} and num_heads={num_heads}, expected at least 1", code="C03")
    sizes = _map_sizes(module, height, width)
    names = _by_the_rule(module, sizes, largest_map, num_heads) if layers is None else list(layers)
    if not names:
        what = f"no convolution has a map of at most {largest_map} x {largest_map} for images of {height} x {width}"
        raise ConfigError(what, remedy="raise largest_map, or name the layers", code="C09")
    convolutions = _convolutions(module, names, sizes)
    largest = max(max(sizes[name]) for name in names)
    module_of: dict[str, AugmentedConv2d] = {}
    replacements = []
    for name, old in convolutions.items():  # all are made before the network is changed
        size = sizes[name]
        pooled = layers is None and max(size) == largest and largest > largest_map // 2
        new = module_of[name] = _augmented(name, old, size, (key_ratio, value_ratio, num_heads), position, pooled)
        counts = (_count(old), _count(new))
        channels = old.out_channels, new.key_channels, new.value_channels
        replacements.append(Replacement(name, size, *channels, pooled, counts))
    for name, new_module in module_of.items():
        module.set_submodule(name, new_module)
    module.augmented = replacements  # type: ignore[assignment]
    if not quiet:
        _print(table(replacements))
    return module


def _print(shown: Table) -> None:
    from rich.console import Console

    Console(stderr=True).print(shown)


def _convolutions(
    module: nn.Module, names: Sequence[str], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, nn.Conv2d]:
    """Return the named convolutions; an image has to pass through each of them."""
    modules = dict(module.named_modules())
    found = {}
    for name in names:
        layer = modules.get(name)
        if type(layer) is not nn.Conv2d or name not in sizes:
            raise ConfigError(f"{name!r} is not a convolution that an image passes through", where="layers", code="C01")
        found[name] = layer
    return found


def table(replacements: Sequence[Replacement]) -> Table:
    """Return a table of the replacements, one row per layer."""
    from rich.table import Table

    found = Table(title=f"{len(replacements)} convolutions augmented")
    found.add_column("layer", no_wrap=True)
    for head in ("map", "channels", "of them attention", "key channels", "parameters before", "after"):
        found.add_column(head, justify="right", overflow="fold")
    for r in replacements:
        size = f"{r.map_size[0]} x {r.map_size[1]}{', attention at half' if r.pooled else ''}"
        numbers = (r.channels, r.value_channels, r.key_channels, *r.parameters)
        found.add_row(r.name, size, *(f"{number:,}" for number in numbers))
    return found


@torch.no_grad()
def _map_sizes(module: nn.Module, height: int, width: int) -> dict[str, tuple[int, int]]:
    """Height and width of the output of every convolution, in the order in which an image passes them."""
    sizes: dict[str, tuple[int, int]] = {}
    hooks = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):

            def note(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                sizes[name] = (output.shape[-2], output.shape[-1])

            hooks.append(part.register_forward_hook(note))
    training = {part: part.training for part in module.modules()}  # some parts may be frozen
    like = next(module.parameters())
    try:
        module.eval()(torch.zeros(1, 3, height, width, device=like.device, dtype=like.dtype))
    except RuntimeError as error:
        what = f"the network does not take images of 3 x {height} x {width}: {str(error).splitlines()[0]}"
        raise ConfigError(what, where="augment", remedy="say which with image_size", code="C09") from error
    finally:
        for part, mode in training.items():
            part.training = mode
        for hook in hooks:
            hook.remove()
    return sizes


def _by_the_rule(module: nn.Module, sizes: dict[str, tuple[int, int]], largest_map: int, num_heads: int) -> list[str]:
    """The first convolution of every block that mixes neighbours and all channels, on maps that are small enough.

    Blocks that have attention already are left alone.
    """
    parts = dict(module.named_modules())
    augmented = {name for name, part in parts.items() if isinstance(part, AugmentedConv2d)}
    taken = augmented | {name.rpartition(".")[0] for name in augmented}
    chosen: dict[str, str] = {}
    for name, size in sizes.items():
        part, block = parts[name], name.rpartition(".")[0]
        if type(part) is not nn.Conv2d or block in taken or max(size) > largest_map or _obstacle(part):
            continue
        if max(part.kernel_size) > 1 and part.in_channels > 3 and part.out_channels >= num_heads:
            chosen.setdefault(block, name)
    return list(chosen.values())


def _obstacle(conv: nn.Conv2d) -> str | None:
    """Why a convolution cannot be augmented and keep the weights of its channels; None where it can."""
    if conv.groups > 1:
        return f"it has {conv.groups} groups"
    if conv.padding_mode != "zeros":
        return f"its padding is {conv.padding_mode!r}"
    if conv.padding == "same" and any(size % 2 == 0 for size in conv.kernel_size):
        return "its kernel is even and its padding 'same'"
    return None


def _augmented(
    name: str,
    old: nn.Conv2d,
    map_size: tuple[int, int],
    attention: tuple[float, float, int],
    position: str,
    pooled: bool,
) -> AugmentedConv2d:
    obstacle = _obstacle(old)
    if obstacle is not None:
        raise ConfigError(f"{name!r} cannot be augmented: {obstacle}", where="layers", code="C09")
    keys, values = attention_channels(old.out_channels, *attention)
    padding: int | tuple[int, int] | None
    if isinstance(old.padding, str):
        padding = None if old.padding == "same" else 0
    else:
        padding = (old.padding[0], old.padding[1])
    try:
        new = AugmentedConv2d(
            old.in_channels,
            old.out_channels,
            (old.kernel_size[0], old.kernel_size[1]),
            key_channels=keys,
            value_channels=min(values, old.out_channels),
            num_heads=attention[2],
            map_size=(-(-map_size[0] // 2), -(-map_size[1] // 2)) if pooled else map_size,
            stride=(old.stride[0], old.stride[1]),
            padding=padding,
            dilation=(old.dilation[0], old.dilation[1]),
            bias=old.bias is not None,
            position=position,
            pool_attention=pooled,
        ).to(old.weight)
    except ValueError as error:
        raise ConfigError(f"{name!r} cannot be augmented: {error}", where="augment", code="C05") from error
    if new.conv is not None:
        kept = new.conv.out_channels
        with torch.no_grad():
            new.conv.weight.copy_(old.weight[:kept])
            if new.conv.bias is not None and old.bias is not None:
                new.conv.bias.copy_(old.bias[:kept])
        new.conv.requires_grad_(old.weight.requires_grad)
    return new.train(old.training)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
