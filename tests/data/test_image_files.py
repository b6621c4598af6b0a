"""Picture files: whole ones are read right whatever their kind, the others are told apart by cause, unread."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from mmjax.data.image_files import CAUSES, PictureError, decode, decode_box, decode_region, examine

LIMIT = 10**7


def photo(height: int = 40, width: int = 60) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, 200 * ((x // 7 + y // 5) % 2)], -1).astype(np.uint8)
    pixels[:6, :9] = (255, 0, 0)  # a corner that tells which way is up
    return Image.fromarray(pixels)


def encode(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def cause_of(data: bytes, limit: int = LIMIT) -> str:
    """The cause by which a file is refused, by `examine` or else by `decode`; "" where it is read."""
    try:
        decode(examine(data, limit))
    except PictureError as error:
        assert error.cause in CAUSES and str(error) == f"{error.cause}: {error.detail}" and error.detail
        return error.cause
    return ""


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(kind: int, bits: int, rows: np.ndarray, *extra: bytes) -> bytes:
    """A PNG as the standard has it, without PIL. rows: [H, W, channels] big-endian."""
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], bits, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", body), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


KINDS = {
    "jpeg": ("JPEG", {"quality": 90}),
    "progressive": ("JPEG", {"progressive": True}),
    "full chroma": ("JPEG", {"subsampling": 0}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "webp": ("WEBP", {"lossless": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_read_as_pil_reads_them(kind):
    data = encode(photo(), KINDS[kind][0], **KINDS[kind][1])
    picture = examine(data, LIMIT)
    assert (picture.height, picture.width, picture.orientation) == (40, 60, 1)
    assert picture.croppable == (KINDS[kind][0] == "JPEG")
    pixels = decode(picture)
    assert pixels.shape == (40, 60, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_off_anywhere_are_refused(kind):
    data = encode(photo(), KINDS[kind][0], **KINDS[kind][1])
    for share in (0.02, 0.1, 0.3, 0.6, 0.9):
        cut = data[: int(len(data) * share)]
        assert cause_of(cut) in ("truncated", "not a picture", "damaged"), share
    if kind in ("jpeg", "progressive", "png"):  # found without decoding, to the last byte
        for cut in (data[: len(data) // 2], data[:-12], data[:-1]):
            with pytest.raises(PictureError) as raised:
                examine(cut, LIMIT)
            assert raised.value.cause == "truncated"


def test_what_is_no_picture_is_named_so():
    assert cause_of(b"") == "empty"
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>"
    for data in (b"\0" * 100, b"<html>404 Not Found</html>", b"%PDF-1.4", b"GI", svg, b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        assert cause_of(data) == "not a picture", data
    with pytest.raises(PictureError, match=r"not a picture: 26 bytes that begin with b'<html>40'"):
        examine(b"<html>404 Not Found</html>", LIMIT)


def test_damage_is_found():
    data = bytearray(encode(photo(), "PNG"))
    data[len(data) // 2] ^= 16  # a bit of the pixels: PIL passes over the checksum that tells
    assert cause_of(bytes(data)) == "damaged"
    jpeg = encode(photo(), "JPEG")
    assert cause_of(jpeg[:2] + b"\xff\xd9" + bytes(9)) == "damaged"
    scan = jpeg.index(b"\xff\xda")
    assert cause_of(jpeg[:2] + jpeg[scan:]) == "damaged"  # no size
    frame = jpeg.index(b"\xff\xc0")
    assert cause_of(jpeg[: frame + 5] + b"\0\0" + jpeg[frame + 7 :]) == "damaged"  # no height


def test_gigantic_pictures_are_refused_before_they_are_decoded():
    tiny = np.zeros((1, 1, 1), np.uint8)
    bomb = bytearray(png(0, 8, tiny))
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    bomb[8 : 8 + 25] = png_chunk(b"IHDR", header)
    gif = bytearray(encode(photo(), "GIF"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    for data in (bytes(bomb), bytes(gif)):
        assert cause_of(data, 178_956_970) == "too large"
    data = encode(photo(), "JPEG")
    assert cause_of(data, 2399) == "too large" and cause_of(data, 2400) == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_come_out_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(), kind, exif=exif)
    picture = examine(data, LIMIT)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert (picture.height, picture.width) == upright.shape[:2]
    assert np.array_equal(decode(picture), upright)
    assert picture.croppable == (kind == "JPEG" and orientation == 1)


def test_malformed_exif_leaves_a_picture_as_it_is():
    for block in (
        b"",
        b"II*\0",
        b"MM\0*\0\0\0\x08\0\x01",
        b"II*\0\xff\xff\xff\x7f",
        b"nonsense",
        b"II*\0\x08\0\0\0\xff\xff",
    ):
        data = encode(photo(), "JPEG", exif=b"Exif\0\0" + block)
        assert examine(data, LIMIT).orientation == 1


def test_grey_pictures_are_three_equal_channels():
    grey = photo().convert("L")
    for kind in ("JPEG", "PNG"):
        pixels = decode(examine(encode(grey, kind, **({"quality": 100} if kind == "JPEG" else {})), LIMIT))
        assert (pixels == pixels[..., :1]).all() and np.abs(pixels[..., 0] - np.asarray(grey).astype(int)).max() <= 2
    black_and_white = grey.point(lambda v: 255 * (v > 99)).convert("1")
    assert set(np.unique(decode(examine(encode(black_and_white, "PNG"), LIMIT)))) == {0, 255}


def test_sixteen_bits_keep_their_upper_eight():
    ramp = np.arange(0, 65536, 131, dtype=">u2").reshape(1, -1, 1)[:, :500]
    upper = (ramp >> 8).astype(np.uint8)
    grey = decode(examine(png(0, 16, ramp), LIMIT))
    assert np.array_equal(grey, upper.repeat(3, -1))
    colour = decode(examine(png(2, 16, np.concatenate([ramp, ramp[:, ::-1], ramp], -1).astype(">u2")), LIMIT))
    assert np.array_equal(colour, np.concatenate([upper, upper[:, ::-1], upper], -1))
    tiff = encode(Image.fromarray(ramp[..., 0].astype(np.uint16)), "TIFF")
    assert np.array_equal(decode(examine(tiff, LIMIT)), grey)
    assert cause_of(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")) == "unsupported"


def test_transparency_lies_over_white():
    rows = np.array([[0, 1, 2]], np.uint8)[..., None]
    palette = png_chunk(b"PLTE", bytes([200, 0, 0, 0, 100, 0, 0, 0, 50])), png_chunk(b"tRNS", bytes([0, 255, 128]))
    pixels = decode(examine(png(3, 8, rows, *palette), LIMIT)).astype(int)[0]
    assert pixels[0].tolist() == [255, 255, 255] and pixels[1].tolist() == [0, 100, 0]
    assert np.abs(pixels[2] - [127, 127, 152]).max() <= 1
    colour = np.array([[[9, 8, 7, 255], [9, 8, 7, 0]]], np.uint8)
    grey = np.array([[[9, 255], [9, 0]]], np.uint8)
    assert decode(examine(png(6, 8, colour), LIMIT)).tolist() == [[[9, 8, 7], [255, 255, 255]]]
    assert decode(examine(png(4, 8, grey), LIMIT)).tolist() == [[[9, 9, 9], [255, 255, 255]]]
    keyed = png(2, 8, colour[..., :3], png_chunk(b"tRNS", struct.pack(">HHH", 9, 8, 7)))
    assert decode(examine(keyed, LIMIT)).tolist() == [[[255, 255, 255], [255, 255, 255]]]


def test_cmyk_is_converted_and_not_inverted():
    data = encode(photo().convert("CMYK"), "JPEG", quality=98, subsampling=0)
    picture = examine(data, LIMIT)
    assert not picture.croppable
    assert np.abs(decode(picture).astype(int) - np.asarray(photo())).mean() < 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_picture(kind):
    others = [Image.new("RGB", (60, 40), colour) for colour in ("green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(photo(), kind, save_all=True, append_images=others, duration=50, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    alone = decode(examine(encode(photo(), kind, **options), LIMIT))
    assert np.array_equal(decode(examine(data, LIMIT)), alone)


def test_more_after_the_end_of_a_jpeg_does_no_harm():
    """Telephones append a second picture or a film."""
    data = encode(photo(), "JPEG")
    for after in (b"\0" * 500, data, b"....ftypmp42" * 20):
        assert np.array_equal(decode(examine(data + after, LIMIT)), decode(examine(data, LIMIT)))
    fills = data.replace(b"\xff\xc0", b"\xff\xff\xff\xc0", 1)
    assert np.array_equal(decode(examine(fills, LIMIT)), decode(examine(data, LIMIT)))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read():
    data = encode(photo(), "AVIF")
    assert np.array_equal(decode(examine(data, LIMIT)), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_region_is_cut_out_of_a_jpeg(subsampling, mode):
    picture = examine(encode(photo(123, 170).convert(mode), "JPEG", quality=95, subsampling=subsampling), LIMIT)
    whole = decode(picture).astype(int)
    for top, left, height, width in ((0, 0, 123, 170), (11, 23, 80, 91), (122, 169, 1, 1), (50, 0, 73, 33)):
        pixels, ratio, origin = decode_region(picture, (top, left, height, width), 1000)
        assert ratio == 1 and origin == (top, left)
        expected = whole[top : top + height, left : left + width]
        assert pixels.shape == expected.shape
        assert (pixels != expected).mean() < 0.1 and np.abs(pixels - expected).mean() < 2  # colours at the border


@pytest.mark.parametrize("kind", ["4:4:4", "4:2:2", "4:2:0", "4:4:0", "progressive", "grey", "png", "turned"])
def test_a_box_is_what_decoding_all_gives_there_to_the_bit(kind):
    rng = np.random.default_rng(0)
    noisy = np.asarray(photo(128, 160)) // 2 + rng.integers(0, 128, (128, 160, 3), np.uint8)
    options = {"quality": 90, "subsampling": {"4:4:4": 0, "4:2:2": 1, "4:4:0": 1}.get(kind, 2)}
    options |= {"progressive": True} if kind == "progressive" else {}
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    drawn = Image.fromarray(noisy).convert("L" if kind == "grey" else "RGB")
    data = encode(drawn, "PNG") if kind == "png" else encode(drawn, "JPEG", **options)
    if kind == "4:4:0":  # PIL writes none. The blocks of one 4:2:2 stand for as many of such a one
        frame = data.index(b"\xff\xc0")
        assert data[frame + 11] == 0x21
        data = data[: frame + 11] + b"\x12" + data[frame + 12 :]
    picture = examine(data, LIMIT)
    whole = decode(picture)
    height, width, _ = whole.shape
    boxes = [(0, 0, height, width), (height - 1, width - 1, 1, 1), (0, width - 3, 2, 3), (31, 17, 16, 16)]
    for _ in range(60):
        h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
        boxes.append((int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), int(h), int(w)))
    for top, left, h, w in boxes:
        assert np.array_equal(decode_box(picture, (top, left, h, w)), whole[top : top + h, left : left + w])


def test_a_box_of_a_damaged_jpeg_is_judged_as_all_of_it():
    data = encode(photo(200, 200), "JPEG")
    frame = data.index(b"\xff\xc4")
    broken = examine(data[: frame + 6] + b"\xff" * 14 + data[frame + 20 :], LIMIT)
    for read in (decode, lambda picture: decode_box(picture, (9, 9, 50, 50))):
        with pytest.raises(PictureError):
            read(broken)


@pytest.mark.parametrize(("size", "ratio"), [(300, 1), (100, 2), (50, 4), (20, 8), (26, 4)])
def test_a_large_region_is_decoded_reduced_and_stays_half_as_large_again(size, ratio):
    picture = examine(encode(photo(330, 470), "JPEG", quality=95), LIMIT)
    region = (5, 9, 311, 403)
    pixels, found, (top, left) = decode_region(picture, region, size)
    assert found == ratio and (top, left) == (5 // ratio, 9 // ratio)
    assert pixels.shape == (-(-316 // ratio) - top, -(-412 // ratio) - left, 3)
    assert ratio == 1 or min(pixels.shape[:2]) >= 1.5 * size
    reduced = decode(picture)[top * ratio : 316 - 316 % ratio, left * ratio : 412 - 412 % ratio].astype(float)
    means = reduced.reshape(len(reduced) // ratio, ratio, -1, ratio, 3).mean((1, 3))
    assert np.abs(pixels[: means.shape[0], : means.shape[1]] - means).mean() < 12  # not by a pixel to the side


def test_a_damaged_region_is_a_picture_error():
    data = encode(photo(200, 200), "JPEG")
    frame = data.index(b"\xff\xc4")
    broken = data[: frame + 6] + b"\xff" * 14 + data[frame + 20 :]
    with pytest.raises(PictureError, match="damaged"):
        decode_region(examine(broken, LIMIT), (0, 0, 200, 200), 64)
