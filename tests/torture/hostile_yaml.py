"""YAML files that try to break, stall or misuse their reader; each must be refused in one line, at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

HEAD = "id: hostile\nbase: imagenet256\nlayout: {metrics: [fd]}\n"
SET = 'set: {sampling: {num_ar_steps: null}, tokenizer: "${parts.tokenizer.continuous}"}'
WHOLE = f"{HEAD}axes: {{part: {{one: {{{SET}}}}}}}\n"  # loads
REFERENCE = "'${{parts.a{}}}'"
TEN, BIG = range(1, 11), ", ".join(map(str, range(1, 99)))


def _times_ten(use: str) -> str:
    return ", ".join([use] * 10)


FILES: dict[str, str | bytes] = {
    # size and depth
    "deep lists": "a: " + "[" * 100_000,
    "deep lists closed": "a: " + "[" * 900 + "]" * 900,
    "deep blocks": "{a: " * 5_000 + "1" + "}" * 5_000,
    "deep by indentation": "\n".join(" " * i + f"a{i}:" for i in range(500)),
    "deep sequences": "- " * 5_000 + "1",
    "long scalar": WHOLE + f"title: {'x' * 10_000_000}\n",
    "scalar of 50,000": WHOLE + f"title: {'x' * 50_000}\n",
    "long key": WHOLE + f"{'k' * 5_000}: 1\n",
    "many keys": "".join(f"k{i}: 1\n" for i in range(50_000)),
    "long number": WHOLE + f"title: {'7' * 6_000}\n",
    "huge exponent": WHOLE + "scales: {smoke: {run: {train: {lr: 1e999999}}}}\n",
    "many rows": HEAD + "axes:\n" + "".join(f"  a{i}: {{{', '.join(f'b{j}: {{}}' for j in TEN)}}}\n" for i in TEN),
    "many points": f"{HEAD}axes: {{part: {{one: {{{SET}, select: {{minimise: fd, over: "
    f"{{sampling.temperature: [{BIG}], sampling.guidance_scale: [{BIG}], sampling.clamp_x0: [{BIG}]}}}}}}}}}}\n",
    # aliases and references: 10^10 values of ten lines
    "alias bomb": "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{_times_ten(f'*a{i - 1}')}]\n" for i in TEN) + WHOLE,
    "merge bomb": "a0: &a0 {k: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{_times_ten(f'*a{i - 1}')}], k{i}: 1}}\n" for i in TEN)
    + WHOLE,
    "alias to itself": WHOLE + "parts: &p {a: *p}\n",
    "alias without anchor": WHOLE + "parts: *nothing\n",
    "merge of a text": WHOLE + "parts: {<<: text}\n",
    "reference bomb": f"{WHOLE}parts:\n  a0: x\n"
    + "".join(f"  a{i}: [{_times_ten(REFERENCE.format(i - 1))}]\n" for i in TEN),
    "text bomb": f"{WHOLE}parts:\n  a0: xxxxxxxxxx\n"
    + "".join(f"  a{i}: '{REFERENCE.format(i - 1)[1:-1] * 10}'\n" for i in TEN),
    "reference to itself": WHOLE + "parts: {a: '${parts.b}', b: '${parts.a}'}\n",
    "reference through itself": WHOLE + "parts: {a: '${parts.a.b}'}\n",
    "resolver": WHOLE + "title: '${oc.env:HOME}'\n",
    "resolver in a reference": WHOLE + "title: '${parts.${oc.env:USER}}'\n",
    # tags
    "python object": WHOLE + "title: !!python/object/apply:os.system ['touch pwned']\n",
    "python name": WHOLE + "title: !!python/name:os.system\n",
    "own tag": WHOLE + "title: !mine x\n",
    "binary tag": WHOLE + "title: !!binary aGVsbG8=\n",
    # encoding
    "latin-1": (WHOLE + "title: caf\u00e9\n").encode("latin-1"),
    "utf-16": (WHOLE + "title: x\n").encode("utf-16"),
    "null bytes": WHOLE.encode() + b"title: a\0b\n",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "escape sequence": WHOLE + 'title: "\\e[31mred"\n',
    "tabs": WHOLE + "run:\n\ttrain: {steps: 3}\n",
    # structure
    "duplicate key": WHOLE + "run: {train: {steps: 3, steps: 4}}\n",
    "key as a block": WHOLE + "? {a: 1}\n: 2\n",
    "two documents": WHOLE + "---\n" + WHOLE,
    "a list": "- a\n- b\n",
    "a key without a text": HEAD + "axes: {part: {1: {}}}\n",
}  # fmt: skip


def hostile_yaml(folder: Path) -> Iterator[tuple[str, Path]]:
    """Write the files into ``folder``: what each tries, and its path."""
    for i, (name, content) in enumerate(FILES.items()):
        path = folder / f"hostile-{i}.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        yield name, path
