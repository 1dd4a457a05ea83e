"""PNG files that say of themselves that a model made them, with which weights and from which seed.

Text chunks carry the figures, and an XMP packet the term that programs look for: the IPTC's
``trainedAlgorithmicMedia``. Whoever encodes a picture anew takes them off.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imgfast import _C
from imgfast.engine.overlay import rgb

XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    "Iptc4xmpExt:DigitalSourceType="
    '"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


def picture_png(pixels: torch.Tensor, texts: Mapping[str, object]) -> bytes:
    """A PNG of uint8 ``[C, S, S]``, C 1 or 3, pixel for pixel; texts as :func:`sheet_png`."""
    grey = pixels.shape[0] == 1
    image = Image.fromarray(pixels[0].numpy() if grey else rgb(pixels).copy())
    return _encoded(image, texts)


def sheet_png(content: bytes, texts: Mapping[str, object]) -> bytes:
    """A PNG of our own with the version of imgfast, the given texts and the XMP packet added."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        return _encoded(image, texts)


def _encoded(image: Image.Image, texts: Mapping[str, object]) -> bytes:
    chunks = PngInfo()
    chunks.add_text("Software", f"imgfast {_C.build_info()['version']}")
    for name, value in texts.items():
        chunks.add_itxt(name, str(value))
    chunks.add_itxt("XML:com.adobe.xmp", XMP)
    encoded = io.BytesIO()
    image.save(encoded, "PNG", pnginfo=chunks)
    return encoded.getvalue()
