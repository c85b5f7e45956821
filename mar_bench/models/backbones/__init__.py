"""Backbones: known tokens and a class -> condition z for the positions asked for.

`base.py` has the contract, `masked.py` the MAE-style encoder-decoder of MAR, `causal.py` the GPT-style decoder, and
`layers.py` the transformer parts of both. Backbones know no loss and no head."""
