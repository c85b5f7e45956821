"""Published check-points -> one safetensors file in our names, with a manifest beside it.

Strict: a tensor that is missing, left over or of another shape is an error, and only what training alone needs may
stay behind. A source file is data: nothing in it is ever executed."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shlex
import warnings
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

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
from mar_bench.models.pretrained.fetch import not_data
from mar_bench.models.pretrained.names import diffusers_name, ldm_name, mar_architecture, our_name
from mar_bench.models.tokenizers.pretrained import net_of
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import atomic_write, replacing, sha256_of

TOKENIZERS = {
    "kl16": LDMKLTokenizer(),
    "vq16": LDMVQTokenizer(),
    "kl8": SDKLTokenizer(),
    "consistency": ConsistencyTokenizer(),
}
KINDS = {  # and where its file keeps the tensors
    "mar": "model_ema",
    "kl16": "model",
    "vq16": "state_dict",
    "kl8": "state_dict",
    "consistency": "state_dict",
}
DIFFUSERS = ("kl8", "consistency")  # published as a folder of diffusers
LDM_STAGES = {"kl16": 5, "vq16": 5, "kl8": 4}  # published in latent diffusion's names: resolutions
TRAINING_ONLY = {
    r"loss\..+": "a training loss of the autoencoder",
    r"model_ema\.(decay|num_updates)": "a counter of the moving average",
}
NUM_HEADS = {"mar_base": 12, "mar_large": 16, "mar_huge": 16}  # which no shape tells
ARGUMENTS = ("model", "img_size", "vae_stride", "patch_size")  # of an official training that shapes do not tell either
ATTENTION_LAYER = re.compile(r".+\.attentions\.\d+\.to_(?:q|k|v|out\.0)\.weight")
WRITTEN_BY = "mar-bench convert"
SHOWN = 12  # names in a message


def convert(kind: str, source: Path, target: Path, raw: bool = False) -> dict[str, Any]:
    """Write ``target`` (.safetensors, float32) and its manifest (.json beside it); returns the manifest.

    ``raw`` takes the weights of a MAR themselves instead of their moving average. Raises UserError where the source
    is not what ``kind`` says or cannot be read safely, and where the target would overwrite somebody else's file."""
    if kind not in KINDS:
        raise UserError(f"no kind '{kind}' of check-point, {did_you_mean(kind, KINDS)}")
    if raw and kind != "mar":
        raise UserError(f"--raw chooses among the two sets of weights of a mar; {kind} has one")
    file = _file_of(kind, source)
    _check_target(target, file)
    key = "model" if raw else KINDS[kind]
    content = _load(file, kind, key)
    state, taken = _state_of(content, kind, key, file)
    left_out = {name: why for name in state if (why := _training_only(kind, name))}
    state = _checked({name: value for name, value in state.items() if name not in left_out}, file)
    names, unknown = _renamed(kind, state)
    tensors = {ours: _squeezed(state[theirs], ours) for theirs, ours in names.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    about = _about_mar(shapes, content, unknown, file) if kind == "mar" else {}
    expected = _mar_shapes(about["architecture"]) if kind == "mar" else _tokenizer_shapes(kind)
    _compare(shapes, unknown, expected, f"{file} as {kind}")
    tensors = _float32(tensors, file)
    manifest = {
        "written_by": WRITTEN_BY,
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
            # before the target appears, which is ours to overwrite only with it
            atomic_write(_manifest_of(target), json.dumps(manifest, indent=1) + "\n")
    except SafetensorError as error:
        raise UserError(f"{target}: cannot be written ({_one_line(error)})") from None
    return manifest


# --- files ----------------------------------------------------------------------------------------------


def _file_of(kind: str, source: Path) -> Path:
    """The file with the tensors: the source, or that inside a folder of diffusers."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source}: no such file" + " or folder" * (kind in DIFFUSERS))
    if kind not in DIFFUSERS:
        raise UserError(f"{source}: a folder; {kind} is converted from a file")
    files = [source / f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "bin")]
    if found := [file for file in files if file.is_file()]:
        return found[0]
    raise UserError(f"{source}: neither {files[0].name} nor {files[1].name} in this folder")


def _manifest_of(target: Path) -> Path:
    return target.with_suffix(".json")


def _check_target(target: Path, source: Path) -> None:
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: the target must end in .safetensors")
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: is the source; give the target another name")
    taken = [path for path in (target, _manifest_of(target)) if path.exists()]
    if target.is_dir() or (taken and not _is_ours(_manifest_of(target))):
        raise UserError(f"{taken[0]}: exists and was not written by {WRITTEN_BY}; give another name or move it away")


def _is_ours(manifest: Path) -> bool:
    try:
        content = json.loads(manifest.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("written_by") == WRITTEN_BY


def _load(file: Path, kind: str, key: str) -> Any:
    """What a file holds, tensors on the CPU. ``key`` is where its tensors are expected.

    Raises UserError for what is no check-point, is damaged, or needs any class but tensors and Namespace."""
    with file.open("rb") as opened:
        head = opened.read(512)
    if what := not_data(head):
        raise UserError(f"{file}: {what}")
    archive, old = head.startswith(b"PK"), head.startswith(b"\x80")  # the two formats of torch.save
    if file.suffix == ".safetensors" and (archive or old):
        raise UserError(f"{file}: no safetensors file but one of torch; rename it to {file.stem}.bin")
    if archive:
        _check_archive(file, kind)
    elif file.suffix == ".safetensors" or head[8:9] == b"{":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise UserError(f"{file}: damaged, or no safetensors file ({_one_line(error)}): get it again") from None
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickles, before the error that they end in
            return torch.load(file, map_location="cpu", weights_only=True, mmap=archive or None)
    except Exception as error:  # whatever damaged bytes lead to: a file is never the program's fault
        if classes := _foreign_classes(file, error):
            raise UserError(_refusal(file, classes, key)) from None
        reason = str(error).rpartition("WeightsUnpickler error:")[2]  # what stands before it is unsafe advice
        raise UserError(f"{file}: damaged, or no check-point ({_one_line(reason)}): get it again") from None


def _check_archive(file: Path, kind: str) -> None:
    """That a zip archive is a whole one that torch.save wrote."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{file}: damaged or cut short ({_one_line(error)}): get it again") from None
    if any(name.endswith("/constants.pkl") for name in members):
        way = "the diffusers folder of openai/consistency-decoder" if kind == "consistency" else "its state dict"
        raise UserError(f"{file}: a TorchScript program, which is not read here; give {way}")
    if not any(name.endswith("data.pkl") for name in members):
        raise UserError(f"{file}: an archive, no check-point; unpack it first (it holds {_some(members)})")


def _foreign_classes(file: Path, error: Exception) -> list[str]:
    """Classes and functions that a file wants and may not have, as far as they can be told without running it."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # not of the zip format, or torch before 2.6: the error names the first of them
        found = re.findall(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else []
    return sorted(set(found))


def _refusal(file: Path, classes: list[str], key: str) -> str:
    other = {"model": "state_dict", "state_dict": "model"}.get(key)  # as in _state_of
    inside = f"d.get('{key}', d.get('{other}', d))" if other else f"d.get('{key}', d)"
    code = (
        "import sys, torch; d = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
        f"torch.save({{'{key}': getattr(d, 'state_dict', lambda: {inside})()}}, sys.argv[2])"
    )
    kept = file.with_name(f"{file.stem}-tensors{file.suffix}")
    command = f'python -c "{code}" {shlex.quote(str(file))} {shlex.quote(str(kept))}'
    return (
        f"{file}: refused, for it holds {_some(classes)} beside tensors, which could run code. If you trust it, keep "
        f"its tensors alone, in an environment that has these classes: {command}; then convert {kept}"
    )


def _state_of(content: Any, kind: str, key: str, file: Path) -> tuple[dict[Any, Any], str]:
    """The state dict in what a file holds, and its name there. Of autoencoders it has several, or is the whole."""
    keys = [key] if kind == "mar" else ["state_dict", "model"]
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not tensors by name")
    for name in keys:
        if isinstance(content.get(name), dict):
            return content[name], name
    if kind != "mar":
        return content, "the whole file"
    raise UserError(f"{file}: no state dict '{key}' in it (found {_some(map(str, content)) or 'nothing'})")


# --- tensors --------------------------------------------------------------------------------------------


def _training_only(kind: str, name: Any) -> str | None:
    """Why a tensor of latent diffusion's training stays behind; None for any other."""
    if kind not in LDM_STAGES or not isinstance(name, str):
        return None
    return next((why for pattern, why in TRAINING_ONLY.items() if re.fullmatch(pattern, name)), None)


def _checked(state: dict[Any, Any], file: Path) -> dict[str, torch.Tensor]:
    """The state, if it is made of named tensors of floating-point numbers that can be stored as they are."""

    def fits(name: Any, value: Any) -> bool:
        dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
        return isinstance(name, str) and dense and value.is_floating_point()

    if wrong := [f"{name} ({_kind_of(value)})" for name, value in state.items() if not fits(name, value)]:
        raise UserError(f"{file}: not weights, which are named tensors of floating-point numbers: {_some(wrong)}")
    return state


def _kind_of(value: Any) -> str:
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def _renamed(kind: str, state: dict[str, torch.Tensor]) -> tuple[dict[str, str], list[str]]:
    """The file's names -> ours, and those that have no place or whose place is taken."""
    rename: Callable[[str], str] = our_name if kind == "mar" else diffusers_name
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


def _squeezed(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """A 1x1 convolution as the linear layer that it is, where our attention has one; else as it was."""
    return tensor[:, :, 0, 0] if ATTENTION_LAYER.fullmatch(name) and tensor.shape[2:] == (1, 1) else tensor


def _about_mar(shapes: dict[str, tuple], content: dict, unknown: list[str], file: Path) -> dict[str, Any]:
    """What the manifest says about a MAR: its architecture, and what its training says that no shape does."""
    wrong, sizes = "", {}
    try:
        sizes = mar_architecture(shapes)
    except KeyError as error:
        wrong = f"no {error}"
    except (IndexError, ZeroDivisionError):
        wrong = "its shapes make no sense"
    if wrong or min(sizes.values()) <= 0:
        also = f"; {len(unknown)} unexpected: {_some(unknown)}" if unknown else ""
        raise UserError(f"{file}: not an official MAR: {wrong or f'sizes {sizes}'}{also}")
    given = content.get("args")
    arguments = {name: getattr(given, name, None) for name in ARGUMENTS}
    arguments = {name: value for name, value in arguments.items() if isinstance(value, (str, int))}
    return {"architecture": {**sizes, "num_heads": NUM_HEADS.get(arguments.get("model"))}, "arguments": arguments}


def _mar_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our MAR of these sizes."""
    backbone = MaskedBackbone(
        dim=sizes["dim"],
        encoder_depth=sizes["encoder_depth"],
        decoder_depth=sizes["decoder_depth"],
        num_heads=1,  # of any number the shapes are the same
        mlp_ratio=sizes["mlp_ratio"],
        num_class_tokens=sizes["num_class_tokens"],
    )
    head = DiffusionHead(depth=sizes["head_depth"], width=sizes["head_width"])
    space = Continuous(sizes["token_dim"], (1, sizes["num_tokens"]))
    with torch.device("meta"):
        core = BACKBONES["masked"](backbone, space, sizes["num_classes"])
        state = ARGenerator("random", core, HEADS["diffusion"](head, space, core.dim), space, 0.1).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _tokenizer_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a tokenizer's network."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in net_of(TOKENIZERS[kind]).state_dict().items()}


def _compare(shapes: dict[str, tuple], unknown: list[str], expected: dict[str, tuple], file: str) -> None:
    """Raises UserError that lists what does not fit."""
    missing = [name for name in expected if name not in shapes]
    unexpected = unknown + [name for name in shapes if name not in expected]
    wrong = [name for name in shapes if name in expected and shapes[name] != expected[name]]
    told = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", [f"{name} {shapes[name]} instead of {expected[name]}" for name in wrong]),
        )
        if names
    ]
    if told:
        raise UserError(f"{file}: {'; '.join(told)}")


def _float32(tensors: dict[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """Float32, contiguous, each in memory of its own. Raises UserError where one is not finite."""
    out: dict[str, torch.Tensor] = {}
    places = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to(torch.float32).contiguous()
        place = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if place in places else tensor
        places.add(place)
    if broken := [name for name, tensor in out.items() if not tensor.isfinite().all()]:
        raise UserError(f"{file}: NaN or infinite weights: {_some(broken)}")
    return out


# --- words ----------------------------------------------------------------------------------------------


def _some(names: Iterable[str]) -> str:
    """The first dozen. Names come from files: what would not print is shown as Python writes it."""
    names = list(names)
    shown = [name if name.isprintable() else repr(name) for name in names[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(names) > SHOWN else "")


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
