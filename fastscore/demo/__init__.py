"""What `fastscore demo` runs: handwritten digits in 64 dimensions and a mixture in two, learned and sampled.

It is written against the public API alone, so it doubles as an example of a whole program: a network of one's own,
a training loop, a sampler, and a judgement of the outcome on data that were held out. Needs scikit-learn and
matplotlib, which come with `fastscore-torch[demo]`.
"""
