"""Images embedded in a page, re-encoded: nothing of the original file is passed through."""

import base64
import io

from PIL import Image

THUMBNAIL = 168  # pixels of a mistake's longer side
PIXEL_ART = 2  # images enlarged at least this much keep their pixels sharp, and are PNG; photographs are JPEG


def thumbnail(image: Image.Image, side: int = THUMBNAIL) -> tuple[str, bool]:
    """A data URI of the re-encoded image, and whether it is a small one shown enlarged."""
    image = image.convert("RGB")
    image.info = {}  # removes comments and profiles of the file
    scale = side / max(image.size)
    sharp = scale >= PIXEL_ART
    buffer = io.BytesIO()
    if sharp:
        image.save(buffer, "PNG", optimize=True)  # the browser enlarges it
    else:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    kind = "png" if sharp else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode(), sharp
