"""Failures that are no fault of the code become one sentence each; all others stay what they are."""

import errno

import pytest

from compressor.errors import BocompressError, InputError, ShortageError
from compressor.failures import blaming, explain, is_shortage

SHORT = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("can't start new thread"),
    ImportError("libtorch.so: failed to map segment from shared object"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
)


@pytest.mark.parametrize("error", SHORT, ids=str)
def test_short_memory_is_told_from_other_failures(error: Exception) -> None:
    sentence = explain(error)
    assert isinstance(sentence, ShortageError)
    assert sentence.exit_code == 1
    assert str(sentence).startswith("too little memory (")


def fail(error: Exception, cause: Exception | None = None) -> None:
    with blaming(lambda reason: InputError(f"it is damaged ({reason})")):
        raise error from cause


@pytest.mark.parametrize("error", SHORT, ids=str)
def test_short_memory_is_not_blamed_on_what_is_read(error: Exception) -> None:
    with pytest.raises(ShortageError):
        fail(ValueError("cannot be read"), error)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("too odd."), "too odd"), (RecursionError(), "nested too deeply"), (KeyError(), "KeyError")],
)
def test_what_is_read_is_blamed_for_all_else(error: Exception, reason: str) -> None:
    with pytest.raises(InputError, match=rf"it is damaged \({reason}\)"):
        fail(error)


def test_our_own_sentences_pass() -> None:
    with pytest.raises(BocompressError, match=r"^as it is$"):
        fail(BocompressError("as it is"))


def test_disks_and_depth_have_sentences() -> None:
    assert str(explain(OSError(errno.ENOSPC, "No space left on device", "a/b"))) == "a/b: No space left on device"
    assert "nested too deeply" in str(explain(RecursionError()))


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("x"), KeyError("memory")], ids=str)
def test_faults_of_the_code_stay_what_they_are(error: Exception) -> None:
    assert not is_shortage(error)
    assert explain(error) is None
