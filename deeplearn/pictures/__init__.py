"""Pictures of data, results and networks, as PNG files; every function takes NumPy arrays and a path."""

from deeplearn.pictures.graph import network
from deeplearn.pictures.images import samples, wrong_predictions
from deeplearn.pictures.lines import curves, sequences
from deeplearn.pictures.tables import confusion_matrix, layer_table

__all__ = [
    "confusion_matrix",
    "curves",
    "network",
    "layer_table",
    "samples",
    "sequences",
    "wrong_predictions",
]
