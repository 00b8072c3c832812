import pytest

from sparsecraft.kernels import processor


def test_the_processor_has_a_name_and_a_cache():
    assert processor.cpu_name()
    assert processor.cache_bytes() >= 2**18


@pytest.mark.parametrize(
    ("text", "size"), [("32K", 2**15), ("32768K", 2**25), ("4M", 2**22), ("", 0), ("?", 0)]
)
def test_sizes_are_read_as_the_system_writes_them(text, size):
    assert processor._bytes(text) == size


def test_a_system_that_does_not_say_gets_the_stated_assumption(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "_CACHES", tmp_path)
    processor.cache_bytes.cache_clear()
    try:
        assert processor.cache_bytes() == 32 * 2**20
    finally:
        processor.cache_bytes.cache_clear()
