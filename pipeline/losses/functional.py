"""Every loss as a plain function that returns a scalar tensor."""

from pipeline.losses.attention_transfer import attention_transfer
from pipeline.losses.binary_cross_entropy import binary_cross_entropy
from pipeline.losses.cross_entropy import cross_entropy
from pipeline.losses.dist import dist
from pipeline.losses.dkd import dkd
from pipeline.losses.hierarchical_context import hierarchical_context
from pipeline.losses.hint import hint
from pipeline.losses.kd import kd
from pipeline.losses.kd_standardized import kd_standardized
from pipeline.losses.l1 import l1
from pipeline.losses.output_l1 import output_l1
from pipeline.losses.perceptual import perceptual
from pipeline.losses.pkt import pkt
from pipeline.losses.rkd import rkd
from pipeline.losses.sigmoid_mse import sigmoid_mse
from pipeline.losses.similarity_preserving import similarity_preserving

__all__ = [
    "attention_transfer",
    "binary_cross_entropy",
    "cross_entropy",
    "dist",
    "dkd",
    "hierarchical_context",
    "hint",
    "kd",
    "kd_standardized",
    "l1",
    "output_l1",
    "perceptual",
    "pkt",
    "rkd",
    "sigmoid_mse",
    "similarity_preserving",
]
