"""npz files and checkpoints made to crash, to fill the memory, to be believed, or to run a command."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.parity.agreements import DATA

TOUCHED = "run"  # the file that appears in the current folder if a command is run
HUGE = 10**12
STORED, DEFLATED, BZIP2 = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2


class Touch:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {TOUCHED}",)


def npy(shape: Any, content: bytes = b"", dtype: str = "<f8") -> bytes:
    """An npy file whose header may promise anything."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def array(values: Any) -> bytes:
    """The npy file of an array, pickled if need be."""
    file = io.BytesIO()
    np.save(file, np.asarray(values), allow_pickle=True)
    return file.getvalue()


IMAGES = array(np.full((3, 8, 8, 3), 7, np.uint8))
MU, SIGMA = ("mu.npy", array(np.zeros(4))), ("sigma.npy", array(np.eye(4)))
META = {"about": {"kind": "file"}, "extractor": {}}


def archive(*members: tuple[str, bytes], how: int = STORED) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", how) as file:
            warnings.simplefilter("ignore")  # about two members of one name
            for name, content in members:
                file.writestr(name, content)

    return make


def lying(name: str, header: bytes, size: int) -> Callable[[Path], None]:
    """A member without data, of which the directory claims the ``size`` that its header promises."""

    def make(path: Path) -> None:
        content = header + bytes(99)
        archive((name, content))(path)
        field = struct.pack("<II", len(content), len(content))  # packed and unpacked size
        whole = path.read_bytes().replace(field, struct.pack("<II", len(content), len(header) + size))
        path.write_bytes(whole)

    return make


def bomb(name: str, header: bytes, size: int, *others: tuple[str, bytes]) -> Callable[[Path], None]:
    """A member that unpacks to a thousand times its size."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", DEFLATED, compresslevel=1) as file:
            for other in others:
                file.writestr(*other)
            with file.open(name, "w") as member:
                member.write(header)
                for begin in range(0, size, 2**20):
                    member.write(bytes(min(2**20, size - begin)))

    return make


def cut(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def made(path: Path) -> None:
        make(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])

    return made


def encrypted(path: Path) -> None:
    archive(("arr_0.npy", IMAGES))(path)
    whole = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.index(signature) + flags] |= 1
    path.write_bytes(whole)


NPZ = {
    "bomb of statistics": ("reference", bomb("mu.npy", npy((2**26,)), 2**29, SIGMA)),
    "bomb of one image": ("eval", lying("arr_0.npy", npy((2, 30000, 30000, 1), dtype="|u1"), 2 * 30000**2)),
    "objects beside the images": ("eval", archive(("arr_0.npy", IMAGES), ("x.npy", array([Touch()])))),
    "objects as images": ("eval", archive(("arr_0.npy", array([Touch()])))),
    "objects as statistics": ("reference", archive(("mu.npy", array([Touch()])), SIGMA)),
    "a trillion rows": ("reference", archive(("mu.npy", npy((HUGE,), bytes(99))), SIGMA)),
    "a trillion images": ("eval", archive(("arr_0.npy", npy((HUGE, 8, 8, 3), bytes(999), "|u1")))),
    "rows that the directory confirms": ("reference", lying("features.npy", npy((2**28,)), 2**31)),
    "a trillion letters": ("reference", archive(("meta.npy", npy((), bytes(99), f"<U{HUGE}")))),
    "empty values": ("reference", archive(("mu.npy", npy((HUGE,), dtype="|V0")), SIGMA)),
    "a negative size": ("eval", archive(("arr_0.npy", npy((-3, -8, 8, 3), bytes(576), "|u1")))),
    "a header of 4 GB": ("eval", archive(("arr_0.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99)))),
    "a header that is code": ("eval", archive(("arr_0.npy", npy(f"__import__('os').system('touch {TOUCHED}')")))),
    "a header that fills the parser": ("eval", archive(("arr_0.npy", npy("-" * 9000 + "1")))),
    "names of other folders": ("eval", archive(("../../arr_0.npy", IMAGES), ("/tmp/arr_0.npy", IMAGES))),
    "names that move the cursor": ("eval", archive(("\x1b[2J\narr_0.npy", IMAGES))),
    "two arrays of one name": ("eval", archive(("arr_0.npy", IMAGES), ("arr_0.npy", IMAGES))),
    "a thousand arrays": ("eval", archive(("arr_0.npy", IMAGES), *((f"{i}.npy", MU[1]) for i in range(1000)))),
    "no array": ("eval", archive(("arr_0.npy", IMAGES), ("arr_1", b"text"))),
    "bzip2": ("eval", archive(("arr_0.npy", IMAGES), how=BZIP2)),
    "encrypted": ("eval", encrypted),
    "cut short": ("eval", cut(archive(("arr_0.npy", IMAGES)))),
    "only 0 and 1": ("eval", archive(("arr_0.npy", array(np.ones((3, 8, 8, 3), np.uint8))))),
    "infinite statistics": ("reference", archive(("mu.npy", array([math.inf] * 4)), SIGMA)),
    "deep JSON": ("reference", archive(MU, SIGMA, ("meta.npy", array("[" * 100_000)))),
    "JSON of another kind": ("reference", archive(MU, SIGMA, ("meta.npy", array(json.dumps(META))))),
}


def saved(change: Callable[[dict], Any], new_format: bool = True) -> Callable[[Path], None]:
    """A checkpoint of the official code with what ``change`` makes of its weights."""

    def make(path: Path) -> None:
        state = load_file(DATA / "mar_kl16.safetensors")
        torch.save(change(state), path, _use_new_zipfile_serialization=new_format)

    return make


def repacked(how: int, change: Callable[[str, bytes], tuple[str, bytes]]) -> Callable[[Path], None]:
    """A checkpoint whose members are changed."""

    def make(path: Path) -> None:
        saved(lambda state: {"model_ema": state})(path)
        with zipfile.ZipFile(path) as file:
            members = [change(name, file.read(name)) for name in file.namelist()]
        archive(*members, how=how)(path)

    return make


def flipped(path: Path) -> None:
    saved(lambda state: {"model_ema": state})(path)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 64
    path.write_bytes(whole)


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        for name in ("storages", "tensors", "pickle", f"../{TOUCHED}"):
            member = tarfile.TarInfo(name)
            content = pickle.dumps(Touch())
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def tensors(length: int | None = None, **entries: Any) -> Callable[[Path], None]:
    """A safetensors file with 64 bytes of data and any header."""
    header = json.dumps(entries).encode()
    content = struct.pack("<Q", len(header) if length is None else length) + header + bytes(64)
    return lambda path: path.write_bytes(content) and None


def entry(shape: list[int], *offsets: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def ema(value: Any) -> Callable[[dict], Any]:
    """The weights as they are, but one."""
    return lambda state: {"model_ema": {**state, "mask_token": value(state["mask_token"])}}


def each(value: Any) -> Callable[[dict], Any]:
    return lambda state: {"model_ema": {name: value(tensor) for name, tensor in state.items()}}


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape with sizes of the width a thousand times larger, out of one number."""
    return torch.zeros(1).expand([size * 1000 if size >= 64 else size for size in tensor.shape])


def untouched(name: str, content: bytes) -> tuple[str, bytes]:
    return name, content


CHECKPOINTS = {
    "a command in a zip": saved(lambda state: {"model_ema": state, "more": Touch()}),
    "a command in the old format": saved(lambda state: {"model_ema": state, "more": Touch()}, new_format=False),
    "a command among the weights": saved(ema(lambda tensor: Touch())),
    "a command among the arguments": saved(lambda state: {"model_ema": state, "args": argparse.Namespace(x=Touch())}),
    "a command and nothing else": lambda path: path.write_bytes(pickle.dumps(Touch())) and None,
    "a tar archive": tar,
    "a TorchScript archive": archive(("x/constants.pkl", b"\x80\x02]q\x00."), ("x/data.pkl", pickle.dumps(Touch()))),
    "compressed weights": repacked(DEFLATED, untouched),
    "a bomb instead of a pickle": bomb("x/data.pkl", b"\x80\x02", 2**28),
    "a flipped bit": flipped,
    "names of other folders": repacked(STORED, lambda name, content: (f"../../{name}", content)),
    "a storage larger than the file": repacked(
        STORED, lambda name, content: (name, content.replace(b"K@", b"J\xff\xff\xff\x7f"))
    ),
    "one number as all weights": saved(each(wide)),
    "sparse weights": saved(ema(lambda tensor: tensor.to_sparse())),
    "weights without numbers": saved(ema(lambda tensor: tensor.to("meta"))),
    "NaN": saved(ema(lambda tensor: tensor * math.nan)),
    "text instead of a tensor": saved(ema(str)),
    "a list": saved(lambda state: [state]),
    "cut short": cut(saved(lambda state: {"model_ema": state})),
    "cut short in the old format": cut(saved(lambda state: {"model_ema": state}, new_format=False)),
    "overlapping offsets": tensors(a=entry([8], 0, 32), b=entry([8], 16, 48), c=entry([4], 48, 64)),
    "offsets beyond the end": tensors(a=entry([HUGE], 0, 4 * HUGE)),
    "offsets that run backwards": tensors(a=entry([8], 64, 32)),
    "an overflowing shape": tensors(a=entry([2**62, 4], 0, 64)),
    "a header of many exabytes": tensors(length=2**63 - 1, a=entry([16], 0, 64)),
    "an unknown type": tensors(a=entry([16], 0, 64, dtype="PICKLE")),
}


def hostile_files(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Write the files one by one: what is wrong, its path, and the command that must refuse it with one line.

    ``eval``: as samples; ``reference``: as ``eval --reference``; ``convert mar``: as source."""
    makers = [(name, f"{i}.npz", verb, make) for i, (name, (verb, make)) in enumerate(NPZ.items())]
    makers += [(name, f"{i}.pth", "convert mar", make) for i, (name, make) in enumerate(CHECKPOINTS.items())]
    for name, file, verb, make in makers:
        make(folder / file)
        yield name, folder / file, verb
