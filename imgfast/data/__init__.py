"""Data sets, pictures of the user's, the split, and the batches that training reads."""

from imgfast.data.augment import Augment, normalise
from imgfast.data.errors import DataError, ImageError
from imgfast.data.folder import expand, load_folder, read_pictures, with_channels
from imgfast.data.imageset import ImageSet
from imgfast.data.load import load_data
from imgfast.data.picture import load_picture
from imgfast.data.split import split, stratified_split

__all__ = [
    "Augment",
    "DataError",
    "ImageError",
    "ImageSet",
    "expand",
    "load_data",
    "load_folder",
    "load_picture",
    "normalise",
    "read_pictures",
    "split",
    "stratified_split",
    "with_channels",
]
