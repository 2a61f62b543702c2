"""What is trained on: samples of a stream or pairs as examples, and these as the micro-batches of every rank.

Knows no network and no run; of the rest of training nothing.
"""
