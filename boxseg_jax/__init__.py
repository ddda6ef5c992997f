"""boxseg_jax: segmentation networks from many bounding boxes and few masks."""

__version__ = "0.1.0"
