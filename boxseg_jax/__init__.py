"""boxseg_jax: segmentation networks from many bounding boxes and few masks.

import boxseg_jax

model = boxseg_jax.load("runs/default")
result = model.predict("photo.jpg")
result.classes, result.probability, result.certainty
result.plot()
"""

__version__ = "0.2.0"
__all__ = ["load"]


def __getattr__(name):
  # Imported when it is asked for: rooms below must not pull in the whole house.
  if name == "load":
    from boxseg_jax.apps.model import load

    return load
  raise AttributeError(f"module 'boxseg_jax' has no attribute {name!r}")
