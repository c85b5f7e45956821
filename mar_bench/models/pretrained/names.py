"""Parameter names of published checkpoints -> ours: those of MAR (LTH14/mar), latent diffusion and diffusers."""

from __future__ import annotations

import re

_WB = r"(weight|bias)"
_LAYER = r"(?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])"  # in a transformer block
_RULES = [
    (r"class_emb\.weight", r"backbone.class_embedding.embedding.weight"),
    (r"fake_latent", r"backbone.class_embedding.no_class"),
    (rf"z_proj\.{_WB}", r"backbone.token_embedding.\1"),
    (rf"z_proj_ln\.{_WB}", r"backbone.input_norm.\1"),
    (r"mask_token", r"backbone.mask_token"),
    (r"(encoder|decoder)_pos_embed_learned", r"backbone.\1_positions"),
    (r"diffusion_pos_embed_learned", r"backbone.head_positions"),
    (rf"decoder_embed\.{_WB}", r"backbone.decoder_embedding.\1"),
    (rf"((?:encoder|decoder)_norm\.{_WB})", r"backbone.\1"),
    (rf"((?:encoder|decoder)_blocks\.\d+\.{_LAYER}\.{_WB})", r"backbone.\1"),
    (rf"diffloss\.net\.time_embed\.mlp\.([02])\.{_WB}", r"head.net.time_mlp.\1.\2"),
    (rf"diffloss\.net\.cond_embed\.{_WB}", r"head.net.condition.\1"),
    (rf"diffloss\.net\.input_proj\.{_WB}", r"head.net.input.\1"),
    (rf"diffloss\.net\.res_blocks\.(\d+)\.in_ln\.{_WB}", r"head.net.blocks.\1.norm.\2"),
    (rf"diffloss\.net\.res_blocks\.(\d+)\.mlp\.([02])\.{_WB}", r"head.net.blocks.\1.mlp.\2.\3"),
    (rf"diffloss\.net\.res_blocks\.(\d+)\.adaLN_modulation\.1\.{_WB}", r"head.net.blocks.\1.modulation.\2"),
    (rf"diffloss\.net\.final_layer\.adaLN_modulation\.1\.{_WB}", r"head.net.final_modulation.\1"),
    (rf"diffloss\.net\.final_layer\.linear\.{_WB}", r"head.net.output.\1"),
]

_NET = r"(encoder|decoder)"
_CONV = r"(norm[12]|conv[12])"  # in a residual block
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_DEPRECATED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# latent diffusion -> diffusers, decoder stages already counted from the other end
_LDM_RULES = [
    (rf"{_NET}\.conv_(in|out)\.{_WB}", r"\1.conv_\2.\3"),
    (rf"{_NET}\.norm_out\.{_WB}", r"\1.conv_norm_out.\2"),
    (rf"((?:post_)?quant_conv\.{_WB}|quantize\.embedding\.weight)", r"\1"),
    (rf"{_NET}\.mid\.block_1\.{_CONV}\.{_WB}", r"\1.mid_block.resnets.0.\2.\3"),
    (rf"{_NET}\.mid\.block_2\.{_CONV}\.{_WB}", r"\1.mid_block.resnets.1.\2.\3"),
    (rf"{_NET}\.(down|up)\.(\d+)\.block\.(\d+)\.{_CONV}\.{_WB}", r"\1.\2_blocks.\3.resnets.\4.\5.\6"),
    (rf"{_NET}\.(down|up)\.(\d+)\.block\.(\d+)\.nin_shortcut\.{_WB}", r"\1.\2_blocks.\3.resnets.\4.conv_shortcut.\5"),
    (rf"{_NET}\.(down|up)\.(\d+)\.(down|up)sample\.conv\.{_WB}", r"\1.\2_blocks.\3.\4samplers.0.conv.\5"),
]  # fmt: skip
for _theirs, _ours in _ATTENTION.items():
    _LDM_RULES += [
        (rf"{_NET}\.mid\.attn_1\.{_theirs}\.{_WB}", rf"\1.mid_block.attentions.0.{_ours}.\2"),
        (rf"{_NET}\.(down|up)\.(\d+)\.attn\.(\d+)\.{_theirs}\.{_WB}", rf"\1.\2_blocks.\3.attentions.\4.{_ours}.\5"),
    ]  # fmt: skip


def our_name(official: str) -> str:
    """Name in an official MAR checkpoint -> name in ``ARGenerator(masked, diffusion).state_dict()``.

    One to one, with equal shapes. Raises KeyError for a name that no official model has."""
    return _renamed(official, _RULES)


def ldm_name(official: str, stages: int) -> str:
    """Name in latent diffusion's autoencoder with ``stages`` resolutions -> name in diffusers.

    One to one; the 1 x 1 convolutions of attention become linear layers, all other shapes are equal. Latent diffusion
    counts decoder stages from the full resolution, diffusers from the latent. Raises KeyError for unknown names."""
    if stage := re.match(r"decoder\.up\.(\d+)\.", official):
        official = f"decoder.up.{stages - 1 - int(stage[1])}.{official[stage.end() :]}"  # no rule matches -1
    return _renamed(official, _LDM_RULES)


def diffusers_name(official: str) -> str:
    """Name in an older diffusers file -> name in diffusers today, which renamed the attention layers."""
    match = re.fullmatch(rf"(.+\.attentions\.\d+)\.({'|'.join(_DEPRECATED)})\.{_WB}", official)
    return f"{match[1]}.{_DEPRECATED[match[2]]}.{match[3]}" if match else official


def _renamed(official: str, rules: list[tuple[str, str]]) -> str:
    for pattern, ours in rules:
        if match := re.fullmatch(pattern, official):
            return match.expand(ours)
    raise KeyError(official)


_SHAPES_OF = {  # sizes of a MAR: field -> the tensor and axis that has it
    "dim": ("backbone.mask_token", 2),
    "num_tokens": ("backbone.head_positions", 1),
    "num_classes": ("backbone.class_embedding.embedding.weight", 0),
    "token_dim": ("head.net.input.weight", 1),
    "head_width": ("head.net.input.weight", 0),
}
_BLOCKS_OF = {
    "encoder_depth": r"backbone\.encoder_blocks\.(\d+)\.",
    "decoder_depth": r"backbone\.decoder_blocks\.(\d+)\.",
    "head_depth": r"head\.net\.blocks\.(\d+)\.",
}


def mar_architecture(shapes: dict[str, tuple[int, ...]]) -> dict[str, int | float]:
    """Sizes of a masked MAR with a diffusion head, from the shapes of its tensors under our names.

    The number of attention heads cannot be inferred. Raises KeyError for a missing tensor, IndexError or
    ZeroDivisionError for an impossible shape."""
    sizes: dict[str, int | float] = {field: shapes[name][axis] for field, (name, axis) in _SHAPES_OF.items()}
    for field, pattern in _BLOCKS_OF.items():
        sizes[field] = len({m[1] for name in shapes if (m := re.match(pattern, name))})
    sizes["num_class_tokens"] = shapes["backbone.encoder_positions"][1] - sizes["num_tokens"]
    sizes["mlp_ratio"] = shapes["backbone.encoder_blocks.0.mlp.fc1.weight"][0] / sizes["dim"]
    return sizes
