"""Text on disk as tokens: readers, vocabularies and token files.

This is not in `rrnn_jax.tasks`, because tasks are pure functions of a key on the device that need
only jax. This package reads and writes files, and may need a tokeniser library.
"""
