"""Image files: found, read upright at their true depth with alpha, profile and EXIF, and written atomically.

Pillow reads everything of 8 bits and 16-bit grey, but silently halves the depth of 16-bit colour, so those
PNG and TIFF files go through OpenCV. Neither writes 16-bit colour with its profile, so it is encoded here.
"""

import contextlib
import errno
import io
import os
import re
import struct
import threading
import uuid
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from veridical.core import catalog
from veridical.core.colour import luma
from veridical.core.errors import DataError, VeridicalError
from veridical.core.untrusted import read_file

IMAGE_SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
ALPHA_SUFFIXES: tuple[str, ...] = (".png", ".webp", ".tif", ".tiff")
DEEP_SUFFIXES: tuple[str, ...] = (".png", ".tif", ".tiff")
# What is read, whatever a file is called. Pillow knows forty kinds more, for some of which it runs other programs.
KINDS: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
MOST_BYTES = 2**30
"""Of an image file. The most pixels are Pillow's MAX_IMAGE_PIXELS, 89,478,485."""
MOST_SCANS = 200
"""Of a JPEG: each goes over all pixels, and cameras write 1 to 10."""

_ORIENTATION = int(ExifTags.Base.Orientation)
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
# A TIFF's "EXIF" is its own directory, mostly about where its strips lie. These are about the photograph.
_ABOUT_THE_PHOTOGRAPH = {
    int(tag)
    for tag in (
        ExifTags.Base.ImageDescription,
        ExifTags.Base.Make,
        ExifTags.Base.Model,
        ExifTags.Base.Software,
        ExifTags.Base.DateTime,
        ExifTags.Base.Artist,
        ExifTags.Base.Copyright,
        ExifTags.IFD.Exif,
        ExifTags.IFD.GPSInfo,
    )
}

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")

# The filters of `warnings` belong to the process, and files are read on several threads.
_WARNINGS = threading.Lock()


@dataclass(frozen=True)
class ImageFile:
    """What a file held.

    pixels: (3 or 1, H, W) float32 in [0, 1], upright.
    alpha:  (1, H, W) float32 in [0, 1], upright, or None.
    bits:   8 or 16, of each sample in the file.
    icc:    the colour profile, as it stands in the file (pixels are not converted), or None.
    exif:   EXIF bytes with the orientation reset, since the pixels are upright, or None.
    dpi:    pixels per inch, (across, down), upright, or None.
    """

    pixels: Tensor
    alpha: Tensor | None
    bits: int
    icc: bytes | None
    exif: bytes | None
    dpi: tuple[float, float] | None = None


def find_images(folder: Path) -> list[Path]:
    """Every image file below `folder`, at any depth, sorted by its path inside the folder.

    Hidden files and folders (a name that begins with a dot) are left out.
    Errors: DataError when the folder is missing, is not a folder, or holds no image.
    """
    folder = Path(folder)
    suffixes = " ".join(IMAGE_SUFFIXES)
    if not folder.exists():
        raise DataError(f"there is no folder {folder}. Expected a folder of images ({suffixes}).")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Expected a folder of images; did you mean {folder.parent}?")
    found = []
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(at, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    if not found:
        raise DataError(f"the folder {folder} holds no image at any depth. Image files end in {suffixes}.")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_image(path: Path, *, channels: int | None = 3) -> ImageFile:
    """Read one image file; of an animation or a TIFF of several pages, the first picture.

    Args:   channels: 3 repeats grey to RGB, 1 turns colour to BT.601 luma, None keeps what the file has.
    Errors: DataError naming the path when the file is missing, corrupt, truncated, or of an unknown kind.
    """
    path = Path(path)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, but got {channels!r}.")
    try:
        data = read_file(path, MOST_BYTES)
    except (OSError, ValueError) as error:  # a name with a zero byte
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    try:
        samples, bits, icc, exif, dpi = _decode(data)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} is too large: {error} Images up to {Image.MAX_IMAGE_PIXELS} pixels are read."
        ) from error
    except DataError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except Image.UnidentifiedImageError as error:
        kinds = f"not an image of a kind that is read ({', '.join(KINDS)}), or is damaged at its start"
        what = kinds if data else "empty"
        raise DataError(f"cannot read {path}: it is {what}. Remove it, or copy it again.") from error
    except (VeridicalError, MemoryError):
        raise
    except Exception as error:  # damaged files of one kind or another make Pillow and OpenCV raise almost anything
        raise DataError(
            f"cannot read {path}: the file is damaged or cut short ({error}). Remove it, or copy it again."
        ) from error
    del data
    samples = samples.transpose(2, 0, 1).astype(np.float32)  # (C, H, W)
    samples /= 2**bits - 1
    values = torch.from_numpy(samples)
    has_alpha = len(values) in (2, 4)
    pixels, alpha = (values[:-1].clone(), values[-1:].clone()) if has_alpha else (values, None)
    if channels == 3 and len(pixels) == 1:
        pixels = pixels.repeat(3, 1, 1)
    elif channels == 1:
        pixels = luma(pixels[None])[0]
    return ImageFile(pixels, alpha, bits, icc, exif, dpi)


_Decoded = tuple[np.ndarray, int, bytes | None, bytes | None, tuple[float, float] | None]


def _decode(data: bytes) -> _Decoded:
    """Upright samples (H, W, 1 to 4) as uint8 or uint16, their bits, the colour profile, the EXIF bytes, the dpi."""
    image = open_image(data)
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
        orientation, exif = _metadata(image)
    with image:
        icc = image.info.get("icc_profile") or None
        dpi = _resolution(image, orientation)
        if image.format == "TIFF":
            orientation = 1  # Pillow and OpenCV turn a TIFF by themselves, and no other format
        if _is_deep_colour(image, data):
            return _turn(_decode_deep_colour(data, image), orientation), 16, icc, exif, dpi
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            samples = np.asarray(image).astype(np.uint16)[..., None]
            return _turn(samples, orientation), 16, icc, exif, dpi
        if image.mode in ("I", "F"):
            raise DataError(
                "its samples are 32-bit numbers, whose range is not known. Convert it to a 16-bit PNG first."
            )
        see_through = "A" in image.mode or "a" in image.mode or "transparency" in image.info
        if image.mode in ("1", "L", "LA", "La"):
            mode = "LA" if see_through else "L"
        else:
            mode = "RGBA" if see_through else "RGB"
        upright = image.convert(image.mode.upper()) if image.mode in ("La", "RGBa") else image
        samples = np.asarray(upright.convert(mode))
        return _turn(samples if samples.ndim == 3 else samples[..., None], orientation), 8, icc, exif, dpi


def open_image(data: bytes) -> Image.Image:
    """Pillow's image in the bytes of a file, not decoded yet: of KINDS, and of as many pixels as are read.

    Errors: what Pillow raises: Image.DecompressionBombWarning or its Error for too many pixels, UnidentifiedImageError,
            or anything for damage; DataError.
    """
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":  # its decoder makes room for the canvas as it is opened
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"Image size ({width * height} pixels) exceeds limit.")
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) > MOST_SCANS:
        raise DataError(f"it is a JPEG of {scans} scans, of which {MOST_SCANS} are read.")
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=KINDS)


def _is_deep_colour(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        depth, colour_type = data[24], data[25]  # of the IHDR chunk, which is always first
        return depth == 16 and colour_type != 0
    if image.format == "TIFF":
        bits = image.tag_v2.get(int(ExifTags.Base.BitsPerSample), ())  # type: ignore[attr-defined]
        return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8
    return False


def _decode_deep_colour(data: bytes, image: Image.Image) -> np.ndarray:
    """(H, W, 2 to 4) uint16, RGB order, not turned. image: the same as Pillow opened it, whose size is known to do."""
    cv2 = catalog.require("cv2", "compare", "reading 16-bit colour images")
    if image.format == "TIFF":
        # OpenCV makes room for a whole tile or strip.
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = tags.get(_TILE_WIDTH, image.width), tags.get(_TILE_HEIGHT, image.height)
        if width * height > 2 * max(image.width * image.height, 2**20):
            raise ValueError(f"its tiles are of {width}x{height} pixels")
    flags = cv2.IMREAD_UNCHANGED  # true depth and alpha; and no turning by EXIF
    try:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot decode it: {error.err}") from error
    if samples is None:
        raise ValueError("OpenCV cannot decode it")
    if samples.dtype != np.uint16 or samples.ndim != 3 or samples.shape[2] not in (3, 4):
        raise DataError(f"its samples are {samples.dtype} of shape {samples.shape}. Convert it to a 16-bit RGB PNG.")
    order = [2, 1, 0, 3][: samples.shape[2]]  # from BGR(A)
    return np.ascontiguousarray(samples[..., order])


def _metadata(image: Image.Image) -> tuple[int, bytes | None]:
    """The EXIF orientation (1 to 8), and the EXIF bytes with it reset. Damaged EXIF counts as none."""
    try:
        exif = image.getexif()
        orientation = exif.get(_ORIENTATION, 1)
        if image.format == "TIFF":
            kept = Image.Exif()
            for tag in _ABOUT_THE_PHOTOGRAPH & set(exif):
                kept[tag] = exif.get_ifd(tag) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else exif[tag]
            exif = kept
        if not exif:
            return orientation if orientation in range(1, 9) else 1, None
        if _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        return orientation if orientation in range(1, 9) else 1, exif.tobytes()
    except Exception:
        # EXIF is written by thousands of programs, and Pillow fails on it in as many ways.
        return 1, None


def _resolution(image: Image.Image, orientation: int) -> tuple[float, float] | None:
    """Pixels per inch (across, down) of the upright image; None where the file says none, or nonsense."""
    try:
        across, down = (float(each) for each in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not 0 < across < 1e6 or not 0 < down < 1e6:
        return None
    return (down, across) if orientation in (5, 6, 7, 8) else (across, down)


def _turn(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation on (H, W, C)."""
    if orientation in (5, 6, 7, 8):
        samples = samples.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def write_image(
    path: Path,
    pixels: Tensor,
    *,
    alpha: Tensor | None = None,
    bits: int = 8,
    icc: bytes | None = None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Write an image in the format of the path's suffix: clamped to [0, 1], rounded to nearest, atomically.

    JPEG is written at quality 95 without chroma subsampling, WebP without loss. A 16-bit TIFF has no EXIF.

    Shapes: pixels (3 or 1, H, W), alpha (1, H, W).
    Args:   bits: 8, or 16 for PNG and TIFF. dpi: pixels per inch (across, down); WebP has no place for it.
    Errors: DataError for a suffix that is unknown or cannot hold the alpha or the depth (it says which can),
            and for pixels that are not finite. OSError with its path when the disk refuses.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise DataError(f"cannot write {path}: expected a name that ends in {' '.join(IMAGE_SUFFIXES)}.")
    if bits not in (8, 16):
        raise ValueError(f"bits must be 8 or 16, but got {bits!r}.")
    if alpha is not None and suffix not in ALPHA_SUFFIXES:
        raise DataError(
            f"cannot write {path}: {suffix} holds no alpha. "
            f"Use one of {' '.join(ALPHA_SUFFIXES)}, or leave the alpha out."
        )
    if bits == 16 and suffix not in DEEP_SUFFIXES:
        raise DataError(
            f"cannot write {path}: {suffix} holds no 16-bit samples. Use one of {' '.join(DEEP_SUFFIXES)}, or bits=8."
        )
    samples = _samples(path, pixels, alpha, bits)
    try:
        data = _encode(samples, suffix, bits, icc, exif, dpi)
    except (OSError, ValueError, struct.error) as error:
        raise DataError(f"cannot write {path}: encoding {samples.shape} as {suffix} failed ({error}).") from error
    atomic_write(path, data)


def _samples(path: Path, pixels: Tensor, alpha: Tensor | None, bits: int) -> np.ndarray:
    """(H, W, C) of uint8 or uint16."""
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"write_image expects pixels of shape (3 or 1, H, W), but got {tuple(pixels.shape)}.")
    if alpha is not None:
        if alpha.shape != (1, *pixels.shape[1:]):
            raise ValueError(
                f"write_image expects alpha of shape {(1, *pixels.shape[1:])}, but got {tuple(alpha.shape)}."
            )
        pixels = torch.cat([pixels, alpha.to(pixels)])
    values = pixels.detach().to("cpu", torch.float64)
    if not torch.isfinite(values).all():
        raise DataError(f"cannot write {path}: the image has pixels that are not finite (NaN or infinity).")
    peak = 2**bits - 1
    whole = (values.clamp(0, 1) * peak + 0.5).floor()
    return np.ascontiguousarray(whole.permute(1, 2, 0).numpy().astype(np.uint8 if bits == 8 else np.uint16))


def _encode(
    samples: np.ndarray,
    suffix: str,
    bits: int,
    icc: bytes | None,
    exif: bytes | None,
    dpi: tuple[float, float] | None,
) -> bytes:
    if bits == 16:
        return _encode_deep_png(samples, icc, exif, dpi) if suffix == ".png" else _encode_deep_tiff(samples, icc, dpi)
    image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)  # L, LA, RGB or RGBA
    resolution = {"dpi": dpi} if dpi else {}
    stream = io.BytesIO()
    if suffix == ".png":
        image.save(stream, "PNG", icc_profile=icc, exif=exif or b"", **resolution)
    elif suffix in (".jpg", ".jpeg"):
        image.save(stream, "JPEG", quality=95, subsampling=0, icc_profile=icc, exif=exif or b"", **resolution)
    elif suffix == ".webp":
        image.save(stream, "WEBP", lossless=True, exact=True, icc_profile=icc or b"", exif=exif or b"")
    elif suffix in (".tif", ".tiff"):
        image.save(stream, "TIFF", compression="tiff_adobe_deflate", icc_profile=icc, exif=exif or b"", **resolution)
    else:
        image.save(stream, "BMP", **resolution)
    return stream.getvalue()


def _encode_deep_png(
    samples: np.ndarray, icc: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None
) -> bytes:
    """16-bit PNG of (H, W, 1 to 4) uint16; each row less the row above (filter Up). PNG 1.2."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    above = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), rows - above], axis=1)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    if icc:
        data += chunk(b"iCCP", b"icc\0\0" + zlib.compress(icc))
    if dpi:
        data += chunk(b"pHYs", struct.pack(">IIB", *(round(each / 0.0254) for each in dpi), 1))  # per metre
    if exif:
        data += chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return data + chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)) + chunk(b"IEND", b"")


def _encode_deep_tiff(samples: np.ndarray, icc: bytes | None, dpi: tuple[float, float] | None) -> bytes:
    """16-bit little-endian TIFF of (H, W, 1 to 4) uint16: one strip, deflate, horizontal predictor. TIFF 6.0.

    Grey with alpha becomes RGBA, because Pillow cannot read the former.
    """
    if samples.shape[2] == 2:
        samples = samples[..., [0, 0, 0, 1]]
    height, width, channels = samples.shape
    has_alpha = channels == 4
    left = np.concatenate([np.zeros_like(samples[:, :1]), samples[:, :-1]], axis=1)
    strip = zlib.compress((samples - left).astype("<u2").tobytes(), 6)
    short, long, undefined, rational = "H", "I", "B", "II"
    across, down = ([round(each * 1000), 1000] for each in dpi or (0.0, 0.0))
    fields: list[tuple[int, str, list[int] | bytes]] = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [16] * channels),
        (259, short, [8]),  # deflate
        (262, short, [2 if channels >= 3 else 1]),  # RGB, or black is zero
        (273, long, [8]),  # the strip follows the header
        (277, short, [channels]),
        (278, long, [height]),
        (279, long, [len(strip)]),
        *([(282, rational, across), (283, rational, down)] if dpi else []),
        (284, short, [1]),
        *([(296, short, [2])] if dpi else []),  # inches
        (317, short, [2]),  # each sample less its left neighbour
        *([(338, short, [2])] if has_alpha else []),  # alpha that does not multiply the colours
        (339, short, [1] * channels),
        *([(34675, undefined, icc)] if icc else []),
    ]
    data = struct.pack("<2sHI", b"II", 42, 8 + len(strip) + len(strip) % 2) + strip + b"\0" * (len(strip) % 2)
    start = len(data) + 2 + 12 * len(fields) + 4  # of the values too long for their field
    entries, tail = b"", b""
    for tag, kind, values in fields:
        packed = struct.pack(f"<{len(values)}{kind[0]}", *values)
        if len(packed) > 4:
            offset = start + len(tail)
            tail += packed + b"\0" * (len(packed) % 2)
            packed = struct.pack("<I", offset)
        code = {"H": 3, "I": 4, "B": 7, "II": 5}[kind]
        entries += struct.pack("<HHI", tag, code, len(values) // len(kind)) + packed.ljust(4, b"\0")
    return data + struct.pack("<H", len(fields)) + entries + struct.pack("<I", 0) + tail


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, meets either the old content or the new, never a part of it.

    The folder is made when missing. A temporary file in the same folder is written, flushed to the disk and
    renamed; it is removed when anything fails. What is written later is on the disk later, also through a power cut.
    Errors: OSError (no space, no permission) with `filename` set to the path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def flush_folder(folder: Path) -> None:
    """Make what was renamed in a folder last through a power cut, where folders can be flushed: not on Windows, nor on
    some file systems of networks."""
    if os.name != "posix":
        return
    with contextlib.suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove what `atomic_write` left in a folder when its process was killed. Nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        if _UNFINISHED.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()
