"""Published checkpoints -> one safetensors file with our parameter names, and a manifest beside it.

Strict: a tensor that is missing, unexpected or of another shape is an error; only tensors needed for training alone
are left out. Nothing in a source file is ever executed."""

from __future__ import annotations

import argparse
import json
import re
import warnings
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mar_bench
from mar_bench.config import spec as specs
from mar_bench.models.ar import ARGenerator
from mar_bench.models.build import BACKBONES, HEADS
from mar_bench.models.pretrained.names import ldm_name, mar_architecture, our_name
from mar_bench.models.tokenizers.pretrained import PublishedSpec, net_of
from mar_bench.utils.errors import UserError, did_you_mean, some
from mar_bench.utils.files import atomic_write, reading, replacing, sha256_of, with_folder

TOKENIZERS: dict[str, PublishedSpec] = {
    "kl16": specs.LDMKLTokenizer(),
    "vq16": specs.LDMVQTokenizer(),
    "kl8": specs.SDKLTokenizer(),
    "consistency": specs.ConsistencyTokenizer(),
}
KINDS = ("mar", *TOKENIZERS)
LDM = ("kl16", "vq16")  # published with latent diffusion's names; the others with those of diffusers
TRAINING_ONLY = re.compile(r"loss\..+|model_ema\.(decay|num_updates)")  # in latent diffusion's files
WRAPPERS = r"(module\.|_orig_mod\.)*"  # before the names of a model in DDP, torch.compile or both
NUM_HEADS = {"mar_base": 12, "mar_large": 16, "mar_huge": 16}  # cannot be inferred from shapes


def convert(kind: str, file: Path, target: Path, raw: bool = False) -> dict[str, Any]:
    """Write ``target`` (.safetensors, float32) and its manifest (.json beside it); returns the manifest.

    ``raw`` takes the raw weights of a MAR, or a file that is nothing but weights, instead of the moving average. Raises
    UserError if the file does not fit ``kind`` or cannot be read safely, or if target or manifest exist."""
    if kind not in KINDS:
        raise UserError(f"no kind '{kind}' of checkpoint, {did_you_mean(kind, KINDS)}")
    if raw and kind != "mar":
        raise UserError(f"--raw chooses between the two sets of weights of a mar; {kind} has one")
    if target.suffix.lower() != ".safetensors":
        raise UserError(f"{target}: the target must end in .safetensors")
    beside = target.with_suffix(".json")
    if existing := [path for path in (target, beside) if path.exists() and not _is_orphan(beside, target)]:
        raise UserError(f"{existing[0]}: already exists; choose another target or move it away")
    content = _load(file)
    state, taken = _state_of(content, kind, raw, file)
    state, prefix = _without_prefix(state, file)
    left_out = {n: "training only" for n in state if kind in LDM and TRAINING_ONLY.fullmatch(n)}
    state = {name: value for name, value in state.items() if name not in left_out}
    if wrong := [n for n, v in state.items() if not isinstance(v, Tensor) or not _is_plain(v)]:
        raise UserError(f"{file}: not floating-point tensors: {some(wrong)}")
    if (numbers := sum(tensor.numel() for tensor in state.values())) > file.stat().st_size:
        raise UserError(f"{file}: its tensors repeat numbers: {numbers:,} of them, more than the file has bytes")
    names, unknown = _renamed(kind, state)
    tensors = {ours: state[theirs] for theirs, ours in names.items()}
    # attention's 1 x 1 convolutions become linear layers
    linear = {n: t[:, :, 0, 0] for n, t in tensors.items() if ".attentions." in n and t.shape[2:] == (1, 1)}
    tensors |= linear
    architecture: dict[str, Any] = {}
    with torch.device("meta"):
        if kind == "mar":
            with reading(file, "official MAR", "convert the checkpoint of an official training"):
                architecture = {**mar_architecture({name: tuple(tensor.shape) for name, tensor in tensors.items()})}
                net = _mar_of(architecture)
            architecture["num_heads"] = NUM_HEADS.get(str(getattr(content.get("args"), "model", None)))
        else:
            net = net_of(TOKENIZERS[kind])
    _compare(tensors, unknown, net.state_dict(), f"{file} as {kind}")
    tensors = {name: tensor.detach().to(torch.float32, copy=True).contiguous() for name, tensor in tensors.items()}
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise UserError(f"{file}: NaN or infinite weights: {some(broken)}")
    manifest = {
        "mar_bench": mar_bench.__version__,
        "kind": kind,
        "source": {"file": file.name, "sha256": sha256_of(file)},
        "weights": taken,
        **({"prefix": prefix} if prefix else {}),
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "architecture": architecture,
        "names": names,
        "squeezed": [theirs for theirs, ours in names.items() if ours in linear],
        "left_out": left_out,
    }
    with replacing(with_folder(target)) as temporary:
        save_file(tensors, temporary)
        manifest["target"] = {"file": target.name, "sha256": sha256_of(temporary)}
        atomic_write(beside, json.dumps(manifest, indent=1) + "\n")  # first: no target is without its manifest
    return manifest


def _load(file: Path) -> Any:
    """Load a file. Raises UserError if it is damaged or needs any class other than tensors and Namespace."""
    with (
        reading(file, "checkpoint", "get it again"),
        torch.serialization.safe_globals([argparse.Namespace]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about odd pickles, before the error
        if file.exists() and not file.is_file():  # reading a pipe would block
            raise ValueError("not a file")
        with file.open("rb") as opened:
            if opened.read(9)[8:] == b"{":  # safetensors: the header's length, then JSON
                return load_file(file)
        if is_zip := zipfile.is_zipfile(file):  # torch reads tensors at their offsets, without a look at checksums
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if any(m.compress_type for m in members) or sum(m.file_size for m in members) > file.stat().st_size:
                    raise ValueError("compressed, as torch.save never does")
                if damaged := archive.testzip():
                    raise ValueError(f"the checksum of {some([damaged])} is wrong")
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip or None)
        except Exception as error:  # some texts suggest to load without protection
            foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
            if foreign is None:
                reason = str(error).rpartition("WeightsUnpickler error:")[2]
                raise ValueError(re.split(r"\.\s|Check the", reason)[0]) from None
            told = f"refused, because it holds {foreign[1]} besides tensors, which could run code"
            raise UserError(f"{file}: {told}; save only its tensors to a new file and convert that") from None


def _is_plain(tensor: Tensor) -> bool:
    """Whether the file holds all numbers of a tensor, as floats."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and tensor.device.type == "cpu"


def _is_orphan(manifest: Path, target: Path) -> bool:
    """Whether a conversion that was killed before it could write ``target`` has left this manifest."""
    if target.exists() or not manifest.is_file():
        return False
    with suppress(Exception):
        content = json.loads(manifest.read_text())
        return "mar_bench" in content and content["target"]["file"] == target.name
    return False


def _state_of(content: Any, kind: str, raw: bool, file: Path) -> tuple[dict[str, Any], str]:
    """The state dict in a file's content, and its key there. An autoencoder's file may be the state dict itself, and
    with ``raw`` a MAR's."""
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not tensors by name")
    keys = ["state_dict", "model"] if kind != "mar" else ["model"] if raw else ["model_ema"]
    taken = next((key for key in keys if isinstance(content.get(key), dict)), None)
    bare = all(isinstance(value, Tensor) for value in content.values())
    if taken is None and kind == "mar" and not (raw and bare):
        hint = "; if it holds nothing but the weights, take them with --raw" if content and bare else ""
        raise UserError(f"{file}: no state dict '{keys[0]}' in it (found {some(content) or 'nothing'}){hint}")
    state = content if taken is None else content[taken]
    return {str(name): value for name, value in state.items()}, taken or "the whole file"


def _without_prefix(state: dict[str, Any], file: Path) -> tuple[dict[str, Any], str]:
    """``state`` without the prefix that DDP or torch.compile put before all its names, and the prefix.

    Raises UserError if it is before some names only: then the file is not the state dict of one wrapped model."""
    names = {match[0]: name for name in state if (match := re.match(WRAPPERS, name))}
    if len(names) > 1:
        raise UserError(
            f"{file}: some names begin with 'module.' or '_orig_mod.', as DDP and torch.compile save them, but not all "
            f"alike ({some(list(names.values())[:2])}); save the state dict of the model inside the wrapper instead"
        )
    prefix = next(iter(names), "")
    return {name.removeprefix(prefix): value for name, value in state.items()}, prefix


def _renamed(kind: str, state: dict[str, Tensor]) -> tuple[dict[str, str], list[str]]:
    """The file's names -> ours, and the names that are unknown or map to a name already taken."""
    rename = ldm_name if kind in LDM else partial(our_name, layout="mar" if kind == "mar" else "diffusers")
    names: dict[str, str] = {}
    for theirs in state:
        with suppress(KeyError):
            if (ours := rename(theirs)) not in names.values():
                names[theirs] = ours
    return names, [theirs for theirs in state if theirs not in names]


def _mar_of(sizes: dict[str, Any]) -> nn.Module:
    """Our MAR of these sizes; the number of attention heads changes no shape."""
    same = ("dim", "encoder_depth", "decoder_depth", "mlp_ratio", "num_class_tokens")
    backbone = specs.MaskedBackbone(num_heads=1, **{name: sizes[name] for name in same})
    head = specs.DiffusionHead(depth=sizes["head_depth"], width=sizes["head_width"])
    space = specs.Continuous(sizes["token_dim"], (1, sizes["num_tokens"]))
    core = BACKBONES["masked"](backbone, space, sizes["num_classes"])
    return ARGenerator("random", core, HEADS["diffusion"](head, space, core.dim), space, 0.1)


def _compare(found: dict[str, Tensor], unknown: list[str], expected: dict[str, Tensor], what: str) -> None:
    """Raises UserError listing everything that does not fit."""
    shapes = [(n, tuple(tensor.shape), tuple(expected[n].shape)) for n, tensor in found.items() if n in expected]
    differing = {
        "missing": [name for name in expected if name not in found],
        "unexpected": unknown + [name for name in found if name not in expected],
        "of another shape": [f"{name} {ours} instead of {right}" for name, ours, right in shapes if ours != right],
    }
    if any(differing.values()):
        told = (f"{len(names)} {how}: {some(names)}" for how, names in differing.items() if names)
        raise UserError(f"{what}: {'; '.join(told)}")
