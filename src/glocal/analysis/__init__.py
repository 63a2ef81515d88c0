"""Analyses of any vision model by hooks: features, attention maps, predictions.

Each analysis is a function of a model and a batch of normalised images that leaves the model unchanged and returns a
frozen dataclass of numbers and numpy arrays.
"""

from glocal.analysis.attention import Attention, attention
from glocal.analysis.attention_maps import AttentionCall, attention_calls
from glocal.analysis.cam import Cam, cam
from glocal.analysis.depth import KINDS, Point, Walk, walk
from glocal.analysis.features import Features, features
from glocal.analysis.fourier import Fourier, Spectrum, fourier, notebook_spectrum, spectrum
from glocal.analysis.locality import Locality, locality
from glocal.analysis.position import Position, position
from glocal.analysis.receptive_field import ReceptiveField, receptive_field
from glocal.analysis.result import to_arrays, to_json
from glocal.analysis.robustness import Robustness, robustness
from glocal.analysis.similarity import Similarity, similarity

__all__ = [
    "KINDS",
    "Attention",
    "AttentionCall",
    "Cam",
    "Features",
    "Fourier",
    "Locality",
    "Point",
    "Position",
    "ReceptiveField",
    "Robustness",
    "Similarity",
    "Spectrum",
    "Walk",
    "attention",
    "attention_calls",
    "cam",
    "features",
    "fourier",
    "locality",
    "notebook_spectrum",
    "position",
    "receptive_field",
    "robustness",
    "similarity",
    "spectrum",
    "to_arrays",
    "to_json",
    "walk",
]
