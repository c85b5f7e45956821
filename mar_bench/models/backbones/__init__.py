"""Backbones: known tokens and a class -> condition z for the requested positions.

`base.py` has the contract, `masked.py` the MAE-style encoder-decoder of MAR, `causal.py` the GPT-style decoder, and
`layers.py` the transformer parts of both. Backbones do not depend on the loss or the head."""
