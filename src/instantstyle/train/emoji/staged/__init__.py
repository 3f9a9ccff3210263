"""Training of the 128-pixel built-in model in stages: a base on text alone, then a decoder, adapters, few steps.

`python -m instantstyle.train.emoji.staged STAGE...`; see `stages` for their order and `package` for restarts.
"""
