"""Modules for language models: tied embeddings, the adaptive softmax, regularisers."""

from rrnn_jax.language.adaptive_softmax import AdaptiveSoftmax as AdaptiveSoftmax
from rrnn_jax.language.clusters import cluster_log_likelihood as cluster_log_likelihood
from rrnn_jax.language.dropout import EmbeddingDropout as EmbeddingDropout
from rrnn_jax.language.dropout import VariationalDropout as VariationalDropout
from rrnn_jax.language.regularisation import activation_regularisation as activation_regularisation
from rrnn_jax.language.tied_embedding import TiedEmbedding as TiedEmbedding

__all__ = [
    "AdaptiveSoftmax",
    "EmbeddingDropout",
    "TiedEmbedding",
    "VariationalDropout",
    "activation_regularisation",
    "cluster_log_likelihood",
]
