"""Published checkpoints -> one safetensors file with our parameter names, and a manifest beside it.

Strict: a tensor that is missing, unexpected or of another shape is an error; only what training alone needs is left
out. A source file is data: nothing in it is ever executed."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shlex
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mar_bench
from mar_bench.config.spec import (
    ConsistencyTokenizer,
    Continuous,
    DiffusionHead,
    LDMKLTokenizer,
    LDMVQTokenizer,
    MaskedBackbone,
    SDKLTokenizer,
)
from mar_bench.models.ar import ARGenerator
from mar_bench.models.build import BACKBONES, HEADS
from mar_bench.models.pretrained.fetch import not_weights
from mar_bench.models.pretrained.names import diffusers_name, ldm_name, mar_architecture, our_name
from mar_bench.models.tokenizers.pretrained import PublishedSpec, net_of
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import atomic_write, reading, replacing, sha256_of

TOKENIZERS: dict[str, PublishedSpec] = {
    "kl16": LDMKLTokenizer(),
    "vq16": LDMVQTokenizer(),
    "kl8": SDKLTokenizer(),
    "consistency": ConsistencyTokenizer(),
}
KINDS = ("mar", *TOKENIZERS)
DIFFUSERS = ("kl8", "consistency")  # published as a diffusers folder
LDM_STAGES = {"kl16": 5, "vq16": 5, "kl8": 4}  # resolutions of those published with latent diffusion's names
TRAINING_ONLY = re.compile(r"loss\..+|model_ema\.(decay|num_updates)")  # in latent diffusion's files
NUM_HEADS = {"mar_base": 12, "mar_large": 16, "mar_huge": 16}  # cannot be inferred from shapes
ARGUMENTS = ("model", "img_size", "vae_stride", "patch_size")  # of the official training; neither can these
ATTENTION_LAYER = re.compile(r".+\.attentions\.\d+\.to_(?:q|k|v|out\.0)\.weight")
SHOWN = 12  # names in a message
Shapes = dict[str, tuple[int, ...]]


def convert(kind: str, source: Path, target: Path, raw: bool = False) -> dict[str, Any]:
    """Write ``target`` (.safetensors, float32) and its manifest (.json beside it); returns the manifest.

    ``raw`` takes the raw weights of a MAR instead of their moving average. Raises UserError if the source does not fit
    ``kind`` or cannot be read safely, or if the target or its manifest exists."""
    if kind not in KINDS:
        raise UserError(f"no kind '{kind}' of checkpoint, {did_you_mean(kind, KINDS)}")
    if raw and kind != "mar":
        raise UserError(f"--raw chooses between the two sets of weights of a mar; {kind} has one")
    file = _file_of(kind, source)
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: the target must end in .safetensors")
    if existing := [path for path in (target, _manifest_of(target)) if path.exists()]:
        raise UserError(f"{existing[0]}: already exists; choose another target or move it away")
    keys = ["state_dict", "model"] if kind != "mar" else ["model"] if raw else ["model_ema"]
    content = _load(file, keys[0])
    state, taken = _state_of(content, keys, kind, file)
    left_out = {n: "training only" for n in state if kind in LDM_STAGES and TRAINING_ONLY.fullmatch(n)}
    state = {name: value for name, value in state.items() if name not in left_out}
    if wrong := [n for n, v in state.items() if not isinstance(v, Tensor) or not v.is_floating_point()]:
        raise UserError(f"{file}: not floating-point tensors: {_some(wrong)}")
    names, unknown = _renamed(kind, state)
    tensors = {ours: _squeezed(state[theirs], ours) for theirs, ours in names.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    about = _about_mar(shapes, content, file) if kind == "mar" else {}
    _compare(shapes, unknown, _expected_shapes(kind, about.get("architecture", {})), f"{file} as {kind}")
    tensors = {name: tensor.detach().to(torch.float32, copy=True).contiguous() for name, tensor in tensors.items()}
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise UserError(f"{file}: NaN or infinite weights: {_some(broken)}")
    manifest = {
        "mar_bench": mar_bench.__version__,
        "kind": kind,
        "source": {"file": file.name, "sha256": sha256_of(file)},
        "weights": taken,
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        **about,
        "names": names,
        "squeezed": [theirs for theirs, ours in names.items() if state[theirs].ndim != tensors[ours].ndim],
        "left_out": left_out,
    }
    try:
        with replacing(target) as temporary:
            save_file(tensors, temporary)
            manifest["target"] = {"file": target.name, "sha256": sha256_of(temporary)}
            # before the target appears, which is never without its manifest
            atomic_write(_manifest_of(target), json.dumps(manifest, indent=1) + "\n")
    except SafetensorError as error:
        raise UserError(f"{target}: cannot be written ({error})") from None
    return manifest


# --- files ----------------------------------------------------------------------------------------------


def _file_of(kind: str, source: Path) -> Path:
    """The file with the tensors: the source itself, or the one in a diffusers folder."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source}: no such file")
    if kind not in DIFFUSERS:
        raise UserError(f"{source}: a folder, but {kind} is converted from a file")
    for ending in ("safetensors", "bin"):
        if (file := source / f"diffusion_pytorch_model.{ending}").is_file():
            return file
    raise UserError(f"{source}: no diffusion_pytorch_model.safetensors or .bin in this folder")


def _manifest_of(target: Path) -> Path:
    return target.with_suffix(".json")


def _load(file: Path, key: str) -> Any:
    """The content of a file, tensors on the CPU; ``key`` is where its tensors should be.

    Raises UserError if it is no checkpoint, is damaged, or needs any class but tensors and Namespace."""
    if what := not_weights(file):
        raise UserError(f"{file}: {what}")
    with file.open("rb") as opened:
        head = opened.read(9)
    with (
        reading(file, "checkpoint", "get it again"),
        torch.serialization.safe_globals([argparse.Namespace]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about odd pickles, before the error
        if file.suffix == ".safetensors" or head[8:] == b"{":
            return load_file(file)
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=head.startswith(b"PK") or None)
        except pickle.UnpicklingError as error:
            if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
                raise UserError(_refusal(file, found[1], key)) from None
            raise ValueError(str(error).rpartition("WeightsUnpickler error:")[2]) from None  # without unsafe advice


def _refusal(file: Path, foreign: str, key: str) -> str:
    code = (
        "import sys, torch; d = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
        f"torch.save({{'{key}': d['{key}']}}, sys.argv[2])"
    )
    kept = file.with_name(f"{file.stem}-tensors{file.suffix}")
    command = f'python -c "{code}" {shlex.quote(str(file))} {shlex.quote(str(kept))}'
    return (
        f"{file}: refused, because it holds {foreign} besides tensors, which could run code. If you trust it, save its "
        f"tensors alone, in an environment that has this class: {command}; then convert {kept}"
    )


def _state_of(content: Any, keys: list[str], kind: str, file: Path) -> tuple[dict[str, Any], str]:
    """The state dict in a file's content and its key there; an autoencoder's file may be the state dict itself.

    The prefix ``module.`` of a DDP wrapper is removed."""
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not tensors by name")
    taken = next((key for key in keys if isinstance(content.get(key), dict)), None)
    if taken is None and kind == "mar":
        raise UserError(f"{file}: no state dict '{keys[0]}' in it (found {_some(content) or 'nothing'})")
    state = content if taken is None else content[taken]
    return {str(name).removeprefix("module."): value for name, value in state.items()}, taken or "the whole file"


# --- tensors --------------------------------------------------------------------------------------------


def _renamed(kind: str, state: dict[str, Tensor]) -> tuple[dict[str, str], list[str]]:
    """The file's names -> ours, and the names that have no place or whose place is taken."""
    rename = our_name if kind == "mar" else diffusers_name
    if kind in LDM_STAGES and (kind not in DIFFUSERS or any(name.startswith("encoder.down.") for name in state)):
        rename = partial(ldm_name, stages=LDM_STAGES[kind])
    theirs_of: dict[str, str] = {}
    unknown = []
    for theirs in state:
        try:
            if theirs_of.setdefault(rename(theirs), theirs) != theirs:
                unknown.append(theirs)
        except KeyError:
            unknown.append(theirs)
    return {theirs: ours for ours, theirs in theirs_of.items()}, unknown


def _squeezed(tensor: Tensor, name: str) -> Tensor:
    """The 1 x 1 convolution of an attention layer as a linear layer; other tensors as they are."""
    return tensor[:, :, 0, 0] if ATTENTION_LAYER.fullmatch(name) and tensor.shape[2:] == (1, 1) else tensor


def _about_mar(shapes: Shapes, content: dict, file: Path) -> dict[str, Any]:
    """For the manifest: the architecture of a MAR, and arguments of its training that shapes do not tell."""
    with reading(file, "official MAR", "convert the checkpoint of an official training"):
        sizes = mar_architecture(shapes)
        if min(sizes.values()) <= 0:
            raise ValueError(f"sizes {sizes}")
    given = content.get("args")
    values = {name: getattr(given, name, None) for name in ARGUMENTS}
    arguments = {name: value for name, value in values.items() if isinstance(value, (str, int))}
    return {"architecture": {**sizes, "num_heads": NUM_HEADS.get(str(arguments.get("model")))}, "arguments": arguments}


def _expected_shapes(kind: str, sizes: dict[str, Any]) -> Shapes:
    """Names and shapes of a tokenizer's network, or of our MAR of these sizes."""
    with torch.device("meta"):
        if kind == "mar":
            same = ("dim", "encoder_depth", "decoder_depth", "mlp_ratio", "num_class_tokens")
            backbone = MaskedBackbone(num_heads=1, **{name: sizes[name] for name in same})  # heads change no shape
            head = DiffusionHead(depth=sizes["head_depth"], width=sizes["head_width"])
            space = Continuous(sizes["token_dim"], (1, sizes["num_tokens"]))
            core = BACKBONES["masked"](backbone, space, sizes["num_classes"])
            net: nn.Module = ARGenerator("random", core, HEADS["diffusion"](head, space, core.dim), space, 0.1)
        else:
            net = net_of(TOKENIZERS[kind])
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def _compare(shapes: Shapes, unknown: list[str], expected: Shapes, what: str) -> None:
    """Raises UserError listing everything that does not fit."""
    differing = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": unknown + [name for name in shapes if name not in expected],
        "of another shape": [
            f"{name} {shapes[name]} instead of {expected[name]}"
            for name in shapes
            if name in expected and shapes[name] != expected[name]
        ],
    }
    if any(differing.values()):
        told = (f"{len(names)} {how}: {_some(names)}" for how, names in differing.items() if names)
        raise UserError(f"{what}: {'; '.join(told)}")


def _some(names: Iterable[Any]) -> str:
    """The first dozen names. They come from files: unprintable ones are shown as Python literals."""
    shown = [str(name) if str(name).isprintable() else repr(name) for name in names]
    return ", ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")
