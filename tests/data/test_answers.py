"""Answers: one spelling, the most frequent, and a list in a fixed order."""

from mmjax.data.answers import answer_list, count, drawn, most_frequent, normalise


def test_spelling_ignores_case_and_spaces():
    assert normalise("  Light  BLUE\n") == "light blue"


def test_the_most_frequent_answer_wins_and_the_first_of_equals():
    assert most_frequent(["two", "Red", "red ", "two", "red"]) == "red"
    assert most_frequent(["b", "a"]) == "b"
    assert most_frequent(["", " "]) == most_frequent([]) == ""


def test_a_drawn_answer_is_one_of_them_as_often_as_it_is_given():
    given = ["Two", "red ", "red", "red"]
    assert [drawn(given, chance) for chance in (0.0, 0.24, 0.25, 0.99)] == ["two", "two", "red", "red"]
    assert drawn(given, None) == "red" and drawn([], 0.5) == ""


def test_the_list_is_by_frequency_then_alphabet_and_cut():
    questions = [{"answers": a} for a in (["no"], ["yes"], ["Yes"], ["cat"], [], ["no", "cat", "cat"])]
    counts = count(questions)
    assert counts == {"yes": 2, "cat": 2, "no": 1}
    assert answer_list(counts, 9) == ("cat", "yes", "no")
    assert answer_list(counts, 2) == ("cat", "yes")
