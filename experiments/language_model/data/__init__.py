"""Text on disk, as numbers: readers, vocabularies, token files and the windows training reads.

It is here and not in `rrnn_jax.tasks`: tasks are pure functions of a key that run on the device and
need nothing but jax, whereas this reads files, keeps others, and may need a library of tokenisers.
"""
