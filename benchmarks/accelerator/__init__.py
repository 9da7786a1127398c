"""Everything that an hour with an accelerator is to give: ``python -m benchmarks.accelerator``."""
