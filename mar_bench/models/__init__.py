"""Models: tokenizers, and generators of tokens with their training loss and sampling loop.

Functions and modules of tensors: no files (except in `pretrained/` and the weights of published tokenizers), no
records, no training loop. All randomness comes from a `NoiseSource` that the caller passes in. Start with `ar.py`
(the loss of the autoregressive generator) and `sampler.py` (its generation loop); `build.py` maps specs to classes."""
