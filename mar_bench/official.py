"""Parameter names of the official checkpoints (LTH14/mar) in our own words."""

from __future__ import annotations

import re

_WB = r"(weight|bias)"
_LAYER = r"(?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])"  # of a transformer block
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


def our_name(official: str) -> str:
    """The name in ``ARGenerator(masked, diffusion).state_dict()`` of a tensor of an official checkpoint.

    One to one, shapes are the same. Raises KeyError for a name that no official model has."""
    for pattern, ours in _RULES:
        if match := re.fullmatch(pattern, official):
            return match.expand(ours)
    raise KeyError(official)
