"""Figures of training, attention and memory; the only place that imports matplotlib."""

from rrnn_jax.visualize.curves import learning_curves_figure as learning_curves_figure

__all__ = ["learning_curves_figure"]
