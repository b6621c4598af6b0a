"""What names mean: guessed, said by `fields`, or proposed where they are misspelt; the rest is left aside."""

import pytest

from mmjax.data.sources.fields import meaning
from mmjax.errors import ConfigError


@pytest.mark.parametrize(
    "names,found,left",
    [
        (("image", "caption", "url", "width"), {"image": "image", "text": "caption"}, ("url", "width")),
        ((" File_Name", "TITLE ", ""), {"image": " File_Name", "text": "TITLE "}, ()),
        (("filename", "image", "caption"), {"image": "image", "text": "caption"}, ("filename",)),
        (
            ("image", "question_id", "question", "answers", "question_type"),
            {"image": "image", "question": "question", "answer": "answers"},
            ("question_id", "question_type"),
        ),
        (("image", "prefix", "suffix"), {"image": "image", "question": "prefix", "answer": "suffix"}, ()),
        (("image", "labels"), {"image": "image", "label": "labels"}, ()),
    ],
)
def test_known_names_are_found_and_others_left_aside(names, found, left):
    assert meaning(names, "x.csv, row 1") == (found, left)


def test_what_fields_says_wins_over_the_guess():
    names = ("url_path", "alt", "caption", "image")
    found, left = meaning(names, "x.csv", {"image": "url_path", "text": "alt"})
    assert found == {"image": "url_path", "text": "alt"} and left == ("caption", "image")


@pytest.mark.parametrize(
    "names,fields,message",
    [
        (("image", "captoin"), {}, r"x, row 1: unknown 'captoin' in \(image, captoin\).* Did you mean 'caption'"),
        (("imge", "caption"), {}, "unknown 'imge' .* Did you mean 'image'"),
        (("image", "question", "anwser"), {}, "unknown 'anwser' .* Did you mean 'answer'"),
        (("image_id", "caption"), {}, r"no image field in \(image_id, caption\)"),
        (("image", "question"), {}, "question without answer"),
        (("image", "answer", "question_type"), {}, "answer without question"),
        (("image", "url"), {}, r"only an image in \(image, url\)"),
        (("image", "caption", "text"), {}, "both 'caption' and 'text' could be the text.* fields={'text': 'caption'}"),
        (("image", "caption", "caption"), {}, "both 'caption' and 'caption'"),
        (("path", "file", "caption"), {}, "both 'path' and 'file' could be the image"),
        (("image", "alt"), {"text": "alt_"}, r"x, row 1: no 'alt_' in \(image, alt\).* Did you mean 'alt'"),
        (("image", "alt"), {"texts": "alt"}, "fields: found 'texts'.* Did you mean 'text'"),
        (tuple("abcdefghijklmnop"), {}, r"\(a, b, c, d, e, f, g, h, i, j, k, l, \.\.\.\)"),
    ],
)
def test_what_is_wrong_is_named(names, fields, message):
    with pytest.raises(ConfigError, match=message):
        meaning(names, "x, row 1", fields)
