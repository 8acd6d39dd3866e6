"""CLIP's image towers: vision transformers, of which a loss looks at an early block."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.catalog import lookup, require
from veridical.core.colour import as_rgb
from veridical.core.errors import MissingExtra, WeightsMissing
from veridical.core.image import at_least_float32
from veridical.core.options import check_choice, check_whole
from veridical.core.untrusted import parse_json, read_file, short
from veridical.features import weights as files
from veridical.features.base import Maps
from veridical.features.frozen import FrozenFeatures

TOWERS = {
    "vit-b-32": "openai/clip-vit-base-patch32",
    "vit-b-16": "openai/clip-vit-base-patch16",
    "vit-l-14": "openai/clip-vit-large-patch14",
}
TOKENS = ("all", "patch", "class")
SIZES = ("tower", "interpolate")

# Mean and standard deviation of the RGB values in [0, 1] that the towers were trained with.
NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0,) * 3, (1.0,) * 3),
}

# The largest that is taken of a folder; the largest published tower has 1664, 8192, 48, 16, 448, 14.
_MOST = {
    "hidden_size": 4096,
    "intermediate_size": 16_384,
    "num_hidden_layers": 96,
    "num_attention_heads": 64,
    "image_size": 2048,
    "patch_size": 64,
    "num_channels": 4,
    "projection_dim": 8192,
}
HEADS = {768: 12, 1024: 16}  # by width, of the towers that OpenAI published


@dataclass(frozen=True)
class Tower:
    """What a checkpoint holds: transformers' tensors by its names, without the prefix of older versions.

    Attributes: heads, eps, quick: what the tensors do not say; quick: GELU as x sigmoid(1.702 x).
    """

    tensors: Mapping[str, Tensor]
    heads: int
    eps: float
    quick: bool
    sha256: str
    origin: str

    @property
    def blocks(self) -> int:
        return len({key.split(".")[2] for key in self.tensors if key.startswith("encoder.layers.")})

    @property
    def patch_px(self) -> int:
        return self.tensors["embeddings.patch_embedding.weight"].shape[-1]

    @property
    def grid(self) -> int:
        """Patches along a side of the image that the positions are for."""
        return round((len(self.tensors["embeddings.position_embedding.weight"]) - 1) ** 0.5)


def read(tower: str, path: str | Path | None = None) -> Tower:
    """A tower by name from the Hugging Face hub (or its cache), or from a folder of `save_pretrained`, or from a single
    .safetensors file of one of OpenAI's towers. transformers reads the former two.

    Errors: WeightsMissing when it is not here and cannot be fetched, or is something else; MissingExtra.
    """
    if path is not None and Path(path).expanduser().is_file():
        loaded = files.read(path, "the CLIP tower")
        width = next((len(value) for key, value in loaded.tensors.items() if key.endswith("class_embedding")), 0)
        if width not in HEADS:
            raise WeightsMissing(
                f"{path} is none of OpenAI's CLIP towers: it has the width {width}, expected "
                f"{' or '.join(map(str, HEADS))}. For another tower give its folder, whose config.json says what the "
                "tensors do not."
            )
        return _tower(loaded.tensors, HEADS[width], 1e-5, True, loaded.origin)
    name = str(Path(path).expanduser()) if path is not None else lookup(TOWERS, tower, "CLIP tower")
    if path is not None and not Path(name).is_dir():
        raise WeightsMissing(f"the CLIP tower: {name} is neither a folder nor a file.")
    offline = path is not None or os.environ.get("VERIDICAL_OFFLINE", "0") not in ("", "0")
    try:
        if path is not None:
            _check_folder(Path(name))
        model = _load(name, offline=offline, own=path is not None)
    except MissingExtra:
        raise
    except Exception as error:  # transformers fails on a folder of anything in any way
        reason = str(error).strip().partition("\n")[0]
        raise WeightsMissing(
            f"the CLIP tower {name} could not be read or fetched: {reason}\n"
            f"  With a network, run `hf download {TOWERS[tower]}` once; or give weights=FOLDER, which "
            "CLIPVisionModel.save_pretrained made elsewhere."
        ) from error
    config = model.config
    if config.hidden_act not in ("quick_gelu", "gelu"):
        raise WeightsMissing(f"the CLIP tower {name} has the activation {config.hidden_act!r}; expected quick_gelu.")
    quick = config.hidden_act == "quick_gelu"
    return _tower(model.state_dict(), config.num_attention_heads, config.layer_norm_eps, quick, name)


def _check_folder(folder: Path) -> None:
    """ValueError for a folder whose config.json asks for more than any image tower: transformers makes the network
    before it looks at the tensors."""
    config = parse_json(read_file(folder / "config.json", 2**20))
    config = config.get("vision_config", config) if isinstance(config, dict) else config
    if not isinstance(config, dict):
        raise ValueError("its config.json is no table")
    for key, most in _MOST.items():
        value = config.get(key, 1)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"its config.json has {key} {short(value)}; expected 1 to {most}")
    if (folder / "adapter_config.json").exists():
        raise ValueError("it has an adapter_config.json, which would lead to other files")


def _load(name: str, *, offline: bool, own: bool) -> Any:
    """transformers' own module: from this machine if it is here, since a look at the hub takes its time to fail."""
    transformers = require("transformers", "clip", "a CLIP tower")
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # it lists the text tower's tensors, which an image tower leaves unused
    logging.disable_progress_bar()
    # Of somebody's folder tensors alone are read, never a pickle; on the hub OpenAI's own may be one.
    options = {"use_safetensors": True} if own else {}
    load = partial(
        transformers.CLIPVisionModel.from_pretrained, name, output_loading_info=True, trust_remote_code=False, **options
    )
    try:
        try:
            model, report = load(local_files_only=True)
        except OSError:
            if offline:
                raise
            logging.enable_progress_bar()
            model, report = load()
    finally:
        logging.set_verbosity(level)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    if report["missing_keys"]:  # it would fill them with random numbers
        raise ValueError(f"it is no CLIP image tower: it has no {min(report['missing_keys'])}")
    return model


def _tower(tensors: Mapping[str, Tensor], heads: int, eps: float, quick: bool, origin: str) -> Tower:
    """Before version 5, transformers put "vision_model." before each name; the whole of CLIP has a text tower too."""
    own = {
        key.removeprefix("vision_model."): value.detach().float()
        for key, value in tensors.items()
        if not key.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale"))
        and value.is_floating_point()
    }
    tower = Tower(own, heads, eps, quick, files.content_hash(own), origin)
    needed = ("class_embedding", "patch_embedding.weight", "position_embedding.weight")
    missing = [key for key in needed if f"embeddings.{key}" not in own]
    if missing or not tower.blocks:
        raise WeightsMissing(f"{origin} is no CLIP image tower: it has no embeddings.{(missing or ['blocks'])[0]}.")
    return tower


class CLIPNetwork(FrozenFeatures):
    """A frozen CLIP image tower up to one of its blocks; the later ones are neither kept nor run.

    Shapes: (N, 1 or 3, H, W), nominal [0, 1] -> tap block0 ... block<block>: with tokens "all" (N, D, 1 + h w, 1), the
            class token first; "patch" (N, D, h, w); "class" (N, D, 1, 1).
    Args:   tower: a key of TOWERS. block: counted from 0. tokens: see shapes.
            size: "tower" resizes the image to what the tower was trained on (bicubic, without antialiasing);
            "interpolate" keeps it, to the nearest multiple of the patch, and interpolates the positions (bicubic).
            normalisation: "clip", or "none" for raw [0, 1] input. weights: a folder or file; see `read`.
    Source: Radford et al. 2021, arXiv:2103.00020; Hugging Face's checkpoints of OpenAI's towers.
    """

    def __init__(
        self,
        tower: str = "vit-b-16",
        *,
        block: int = 3,
        tokens: str = "all",
        size: str = "tower",
        normalisation: str = "clip",
        weights: str | Path | None = None,
    ) -> None:
        lookup(TOWERS, tower, "CLIP tower")
        check_whole("block of a CLIP tower", block, low=0)
        check_choice("tokens of a CLIP tower", tokens, TOKENS)
        check_choice("size of a CLIP tower", size, SIZES)
        mean, std = (torch.tensor(x) for x in lookup(NORMALISATIONS, normalisation, "normalisation of a CLIP tower"))
        found = read(tower, weights)
        check_whole(f"block of {found.origin}", block, low=0, high=found.blocks - 1)
        super().__init__(
            taps=[f"block{block}"],
            available=[f"block{k}" for k in range(block + 1)],
            identity=("clip", found.sha256, block, tokens, size, normalisation),
        )
        self._freeze(f"clip-{tower}", found.sha256)
        self.tokens, self.size, self.patch_px, self.grid = tokens, size, found.patch_px, found.grid
        self.heads, self.eps, self.quick = found.heads, found.eps, found.quick
        # (w - mean) / std is folded into the patches' convolution, which pads nothing.
        patches = found.tensors["embeddings.patch_embedding.weight"] / std[:, None, None]
        self._keep("patches", patches, -(patches * mean[:, None, None]).sum((1, 2, 3)))
        self._keep("first", found.tensors["embeddings.class_embedding"])
        self._keep("positions", found.tensors["embeddings.position_embedding.weight"])
        self._keep("norm", *_pair(found, "pre_layrnorm"))
        for k in range(block + 1):
            layer = f"encoder.layers.{k}"
            projections = [_pair(found, f"{layer}.self_attn.{part}_proj") for part in "qkv"]
            self._keep(f"block{k}_norm1", *_pair(found, f"{layer}.layer_norm1"))
            self._keep(f"block{k}_qkv", *(torch.cat(parts) for parts in zip(*projections, strict=True)))
            self._keep(f"block{k}_out", *_pair(found, f"{layer}.self_attn.out_proj"))
            self._keep(f"block{k}_norm2", *_pair(found, f"{layer}.layer_norm2"))
            self._keep(f"block{k}_wide", *_pair(found, f"{layer}.mlp.fc1"))
            self._keep(f"block{k}_narrow", *_pair(found, f"{layer}.mlp.fc2"))
        self.names = [name for name, _ in self.named_buffers()]

    def _keep(self, name: str, weight: Tensor, bias: Tensor | None = None) -> None:
        self.register_buffer(f"{name}_weight", weight.clone(), persistent=False)
        if bias is not None:
            self.register_buffer(f"{name}_bias", bias.clone(), persistent=False)

    def draw(self) -> tuple[Tensor, ...]:
        return tuple(self.buffers())

    def forward(self, image: Tensor, weights: tuple[Tensor, ...]) -> Maps:
        image = self._resized(as_rgb(at_least_float32(image)))
        dtype = image.dtype
        kept = dict(zip(self.names, weights, strict=True))

        def get(name: str) -> tuple[Tensor, Tensor]:
            return kept[f"{name}_weight"].to(dtype), kept[f"{name}_bias"].to(dtype)

        def norm(x: Tensor, name: str) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], *get(name), self.eps)

        patches = F.conv2d(image, *get("patches"), stride=self.patch_px)  # (N, D, h, w)
        height, width = patches.shape[-2:]
        first = kept["first_weight"].to(patches.dtype).expand(len(image), 1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)  # (N, 1 + h w, D)
        x = norm(x + self._positions(kept["positions_weight"].to(x.dtype), height, width), "norm")
        maps: Maps = {}
        for k in range(len(self.available)):
            x = x + self._attention(norm(x, f"block{k}_norm1"), *get(f"block{k}_qkv"), *get(f"block{k}_out"))
            y = F.linear(norm(x, f"block{k}_norm2"), *get(f"block{k}_wide"))
            y = y * torch.sigmoid(1.702 * y) if self.quick else F.gelu(y)
            x = x + F.linear(y, *get(f"block{k}_narrow"))
            if f"block{k}" in self.taps:
                maps[f"block{k}"] = self._as_map(x, height, width)
        return maps

    def _resized(self, image: Tensor) -> Tensor:
        if self.size == "tower":
            size = (self.grid * self.patch_px,) * 2
        else:
            height, width = (max(1, round(side / self.patch_px)) * self.patch_px for side in image.shape[-2:])
            size = (height, width)
        return image if image.shape[-2:] == size else F.interpolate(image, size, mode="bicubic", align_corners=False)

    def _positions(self, positions: Tensor, height: int, width: int) -> Tensor:
        """(1 + h w, D): the tower's own, or those of its patches interpolated."""
        if (height, width) == (self.grid, self.grid):
            return positions
        grid = positions[1:].T.reshape(1, -1, self.grid, self.grid)
        grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([positions[:1], grid[0].flatten(1).T])

    def _attention(self, x: Tensor, qkv: Tensor, qkv_bias: Tensor, out: Tensor, out_bias: Tensor) -> Tensor:
        heads = F.linear(x, qkv, qkv_bias).unflatten(2, (3, self.heads, -1))  # (N, T, 3, heads, D / heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return F.linear(mixed.transpose(1, 2).flatten(2), out, out_bias)

    def _as_map(self, x: Tensor, height: int, width: int) -> Tensor:
        maps = x.transpose(1, 2)
        if self.tokens == "class":
            return maps[:, :, :1, None]
        return maps[:, :, 1:].unflatten(2, (height, width)) if self.tokens == "patch" else maps[..., None]


def _pair(tower: Tower, name: str) -> tuple[Tensor, Tensor]:
    try:
        return tower.tensors[f"{name}.weight"], tower.tensors[f"{name}.bias"]
    except KeyError as error:
        raise WeightsMissing(f"{tower.origin} is no CLIP image tower: it has no {error}.") from None
