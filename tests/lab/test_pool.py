"""One function on many arguments: answers in any order, errors as answers, lazily read."""

import sys

import pytest

from sparsecraft.core.errors import MissingDependency, SparsityError, UnknownName
from sparsecraft.lab.pool import answers, reason


def root(number):
    if number < 0:
        raise UnknownName("number", str(number), ["0", "1"])
    return number**0.5


def test_here_the_answers_come_in_order():
    found = list(answers(root, [4, 9, 0]))
    assert [(each.argument, each.value) for each in found] == [(4, 2.0), (9, 3.0), (0, 0.0)]


def test_an_error_is_an_answer():
    good, bad, other = answers(root, [4, -1, 9])
    assert (good.result(), other.result()) == (2.0, 3.0)
    assert isinstance(bad.error, UnknownName)
    with pytest.raises(UnknownName):
        bad.result()


def test_arguments_are_read_one_at_a_time():
    read = []

    def numbers():
        for number in (1, 4, 9):
            read.append(number)
            yield number

    for answer in answers(root, numbers()):
        assert read[-1] == answer.argument


@pytest.mark.slow
def test_processes_give_the_same_answers_and_errors_that_cannot_travel_keep_their_words():
    pytest.importorskip("joblib")
    found = {each.argument: each for each in answers(abs, [3, -4, 5], jobs=2)}
    assert {key: each.value for key, each in found.items()} == {3: 3, -4: 4, 5: 5}
    (broken,) = answers(len, [7], jobs=2)
    assert isinstance(broken.error, TypeError)


def test_a_missing_ray_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.util.joblib", None)
    with pytest.raises(MissingDependency, match=r"sparsecraft\[cluster\]"):
        list(answers(root, [4], backend="ray"))


def test_reasons_are_one_line():
    assert reason(SparsityError("what\n to do")) == "what to do"
    assert reason(KeyError("a")) == "KeyError: 'a'"
    assert reason(MemoryError()) == "MemoryError"
