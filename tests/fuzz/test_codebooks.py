"""Codebook files of any content: a codebook, or one sentence; no memory for what isn't there."""

from __future__ import annotations

import copy
import json
import math
import struct

import pytest
import safetensors.torch
import torch
from fuzzing import (
    HOSTILE_TEXTS,
    HUGE,
    PLAIN_VALUES,
    cases,
    changed,
    damaged,
    damages,
    nested,
    sentence_of,
    tree_changes,
)
from hypothesis import strategies as st

from grace_bench.codebook.codebook import Codebook
from grace_bench.codebook.file import (
    codebook_from_state,
    codebook_state,
    load_codebook,
    save_codebook,
)
from grace_bench.codebook.keys import KeyInfo, Label

ENTRY = "grace_bench.codebook"


def small_codebook() -> Codebook:
    codebook = Codebook(3, 2)
    for step in (1, 2, 3):
        info = KeyInfo(Label((7, step), 4.0, f"Paris {step}"), (f"e{step}", "é"), step, step)
        codebook.add(torch.arange(3.0) + step, torch.arange(2.0), 0.5 * step, info)
    return codebook


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    """The bytes of a good file."""
    path = tmp_path_factory.mktemp("good") / "codebook.safetensors"
    save_codebook(path, small_codebook(), layer="h.2.fc", model="gpt2@abc", settings={"radius": 1})
    return path.read_bytes()


def split(content: bytes) -> tuple[dict, bytes]:
    """The header and the data of a safetensors file."""
    [length] = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: str, data: bytes, length: int | None = None) -> bytes:
    text = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def check(fence, content: bytes) -> str | None:
    """Load a file; use what was loaded as everybody would."""
    path = fence.emptied() / "codebook.safetensors"
    path.write_bytes(content)

    def use() -> None:
        codebook = load_codebook(path)
        rows = codebook.rows()
        assert len(rows) == len(codebook) == len(codebook.keys) == len(codebook.values)
        codebook.nearest(torch.zeros(2, codebook.d_in))
        codebook.answering(torch.zeros(2, codebook.d_in))
        info = KeyInfo(Label((1,), 1.0))
        codebook.add(torch.zeros(codebook.d_in), torch.zeros(codebook.d_out), 1.0, info)

    said = sentence_of(use)
    assert said is None or "allocate" not in said
    assert [file.name for file in fence.inside.iterdir()] == ["codebook.safetensors"]
    fence.check()
    return said


def test_the_file_that_is_changed_here_is_good(fence, content):
    assert check(fence, content) is None
    header, data = split(content)
    assert check(fence, joined(json.dumps(header), data)) is None


@cases(200, damage=damages())
def test_a_file_with_any_bytes_anywhere(fence, content, damage):
    check(fence, damaged(content, damage))


@cases(60, place=st.floats(0, 1))
def test_a_file_cut_short_is_never_a_codebook(fence, content, place):
    assert check(fence, content[: int(place * (len(content) - 1))]) is not None


SIZES = st.sampled_from([0, 1, 2, 3, 6, 24, -1, 2**24, 2**24 + 1, 2**31, 2**40, 2**60, 2**64, 1.5])
LIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(
            [
                *(
                    "F16",
                    "BF16",
                    "F64",
                    "I64",
                    "U8",
                    "BOOL",
                    "F8_E4M3",
                    "F8_E8M0",
                    "F4",
                    "U64",
                    "C64",
                ),
                *("f32", "", "object", "O", None, 3),
            ]
        ),
        "shape": st.lists(SIZES, max_size=4),
        "data_offsets": st.lists(SIZES, max_size=3),
        "more": PLAIN_VALUES,
    },
)


@cases(200, name=st.sampled_from(["keys", "values", "radii", "new"]), lie=LIES, empty=st.booleans())
def test_a_header_that_lies_about_its_tensors(fence, content, name, lie, empty):
    header, data = split(content)
    header[name] = {**header.get(name, header["radii"]), **lie}
    if empty:  # no keys at all, with the widths that the lie says
        text = json.loads(header["__metadata__"][ENTRY])
        header["__metadata__"][ENTRY] = json.dumps({**text, "keys": []})
        for other in ("keys", "values", "radii"):
            told = header[other]["shape"][1:] if isinstance(header[other]["shape"], list) else []
            header[other] |= {"shape": [0, *told], "data_offsets": [0, 0]}
        data = b""
    check(fence, joined(json.dumps(header), data))


@cases(40, length=st.sampled_from([0, 1, 7, 2**20, 2**31, 2**32, 2**60, 2**63, 2**64 - 1]),
       start=st.sampled_from([b"", b"{", b"[", b"{}", b'{"a":', HUGE, b"\xff" * 64]))  # fmt: skip
def test_a_length_that_lies(fence, content, length, start):
    assert check(fence, struct.pack("<Q", length) + start + content[8:]) is not None


@cases(4, twice=st.sampled_from(["keys", "values", "radii", "__metadata__"]))
def test_names_that_stand_twice(fence, content, twice):
    header, data = split(content)
    text = json.dumps(header)
    text = text[:-1] + f", {json.dumps(twice)}: {json.dumps(header[twice])}" + "}"
    check(fence, joined(text, data))


@cases(250, changes=tree_changes())
def test_metadata_with_any_value_anywhere(fence, content, changes):
    header, data = split(content)
    told = changed(json.loads(header["__metadata__"][ENTRY]), changes)
    header["__metadata__"][ENTRY] = json.dumps(told)
    check(fence, joined(json.dumps(header), data))


TEXTS = st.one_of(
    st.sampled_from(
        [
            *("", "null", "[]", "{}", "NaN", '"x"', "{" * 90, "[" * 100_000, '{"a":' * 100_000),
            *('{"format": 1}', '{"format": 1, "keys": [' + "[]," * 50_000 + "[]]}", "1" * 10_000),
            '{"format": 1e999}',
        ]
    ),
    st.text(max_size=30),
    st.sampled_from(HOSTILE_TEXTS),
)


@cases(60, text=TEXTS, entry=st.sampled_from([ENTRY, ENTRY, "other", "../../x"]))
def test_metadata_of_any_text(fence, content, text, entry):
    header, data = split(content)
    header["__metadata__"] = {entry: text}
    assert check(fence, joined(json.dumps(header), data)) is not None


NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, -0.0, 1e38, -1e38, 1e-45])


@cases(80, name=st.sampled_from(["keys", "values", "radii"]), number=NUMBERS, at=st.integers(0, 8))
def test_any_number_in_the_tensors(fence, content, name, number, at):
    header, data = split(content)
    tensors = safetensors.torch.load(joined(json.dumps(header), data))
    flat = tensors[name].flatten()
    flat[at % len(flat)] = number
    tensors[name] = flat.reshape(tensors[name].shape)
    said = check(fence, safetensors.torch.save(tensors, header["__metadata__"]))
    assert (said is None) == (math.isfinite(number) or name == "values")


STATES = st.sampled_from(
    [
        *(None, "text", b"bytes", [1], {}, torch.tensor(10**12), torch.zeros(0)),
        *(torch.full((4,), 255, dtype=torch.uint8), torch.zeros(0, 2**62), torch.ones(3, 2, 1)),
        *(torch.zeros(3, 3, dtype=torch.float64), torch.zeros(2**20, dtype=torch.uint8)),
        *(torch.full((3,), math.nan), torch.zeros(3, 3, dtype=torch.complex64), torch.zeros(3, 0)),
        torch.frombuffer(bytearray(json.dumps(nested(900)).encode()), dtype=torch.uint8),
    ]
)


@cases(80, name=st.sampled_from(["keys", "values", "radii", "header", "new"]), value=STATES)
def test_any_state_that_a_checkpoint_may_hold(name, value):
    state = codebook_state(small_codebook())
    state[name] = copy.deepcopy(value)
    sentence_of(lambda: codebook_from_state(state))


def test_ten_million_ids_are_read_and_ten_million_lists_are_not(fence, content):
    header, data = split(content)
    told = json.loads(header["__metadata__"][ENTRY])
    told["keys"][0]["label_ids"] = "IDS"
    path = fence.emptied() / "codebook.safetensors"
    for part, said in (("1,", None), ("[],", "too many parts")):
        ids = f"[{part * 10_000_000}1]"
        header["__metadata__"][ENTRY] = json.dumps(told).replace('"IDS"', ids)
        path.write_bytes(joined(json.dumps(header), data))
        found = sentence_of(lambda: load_codebook(path))
        assert found is None if said is None else said in found
