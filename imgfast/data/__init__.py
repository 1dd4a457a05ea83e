"""Data sets, pictures of the user's, the split, and the batches that training reads."""

from imgfast.data.augment import Augment, normalise
from imgfast.data.cache import cache_folder, clear_cache
from imgfast.data.decode import read_pictures, with_channels
from imgfast.data.errors import DataError, ImageError
from imgfast.data.folder import expand, load_folder
from imgfast.data.imageset import ImageSet, Source
from imgfast.data.load import load_data
from imgfast.data.picture import load_picture
from imgfast.data.report import DataReport, describe
from imgfast.data.split import split, stratified_split, three_way_split

__all__ = [
    "Augment",
    "DataError",
    "DataReport",
    "ImageError",
    "ImageSet",
    "Source",
    "cache_folder",
    "clear_cache",
    "describe",
    "expand",
    "load_data",
    "load_folder",
    "load_picture",
    "normalise",
    "read_pictures",
    "split",
    "stratified_split",
    "three_way_split",
    "with_channels",
]
