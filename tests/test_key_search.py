"""Looking keys up gives what measuring all distances gives, bit for bit."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_bench.codebook import distances as measuring
from grace_bench.codebook import search, storage
from grace_bench.codebook.codebook import Codebook
from grace_bench.codebook.keys import KeyInfo, Label
from grace_bench.codebook.lookup import IncrementalLookup

INFO = KeyInfo(Label((1,), 1.0, "Paris"))


def brute(keys, queries):
    """Measure all distances and take the first smallest."""
    mode = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(keys, queries, p=2.0, compute_mode=mode)  # (N, B)
    nearest = distances.amin(0)
    return nearest, (distances == nearest).int().argmax(0)


def book(keys, radii=1.0, d_out=1):
    radii = radii if isinstance(radii, torch.Tensor) else torch.full((len(keys),), float(radii))
    return Codebook.of(keys, torch.zeros(len(keys), d_out), radii, [INFO] * len(keys))


@contextmanager
def searching(**sizes):
    """Search even where measuring all distances would be quicker, in pieces of these sizes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {"PLAIN_WORK": 0, "FEW_KEYS": 1, **sizes}.items():
            for module in (search, measuring):
                if hasattr(module, name):
                    patch.setattr(module, name, size)
        patch.setattr(storage, "COPIED", sizes.get("GATHERED", storage.COPIED))
        yield


def assert_as_brute(codebook, queries):
    distances, nearest = brute(codebook.keys, queries)
    found = codebook.nearest(queries)
    assert torch.equal(found[0], distances)
    assert torch.equal(found[1], nearest)
    for boundary in ("open", "closed"):
        fires = codebook.inside(distances, nearest, boundary)
        answers = codebook.answering(queries, boundary)
        assert torch.equal(answers[0], distances.masked_fill(~fires, torch.inf))
        assert torch.equal(answers[1], nearest.masked_fill(~fires, -1))


def cloud(kind, n, d, generator):
    """Keys (n, d) of which some lie so close together that rounding decides."""
    noise = torch.randn(n, d, generator=generator)
    centres = noise[torch.randint(0, 1 + n // 20, (n,), generator=generator)]
    return {
        "random": noise,
        "clusters": centres + 0.05 * torch.randn(n, d, generator=generator),
        "tight": centres + 1e-4 * torch.randn(n, d, generator=generator),
        "last bits": noise[:1] * (1 + (4 * noise).round() * 2.0**-23),
        "grid": noise.round(),
        "equal": noise[:1].repeat(n, 1),
    }[kind]


@pytest.mark.parametrize("kind", ["random", "clusters", "tight", "last bits", "grid", "equal"])
@settings(max_examples=25, deadline=None)
@given(
    n=st.sampled_from([1, 2, 33, 200, 700]),
    d=st.sampled_from([1, 3, 17, 64, 300]),
    mean=st.sampled_from([0.0, 30.0, 1e4]),
    scale=st.sampled_from([1e-18, 1.0, 100.0, 1e12]),
    radius=st.sampled_from(["none", "nearest", "mixed", "odd"]),
    sizes=st.sampled_from([{}, {"CHUNK": 64, "QUERIES": 3, "GATHERED": 5, "PAIRS": 7}]),
    seed=st.integers(0, 2**32),
)
def test_a_search_is_measuring_everything(kind, n, d, mean, scale, radius, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    keys = (cloud(kind, n, d, generator) + mean) * scale
    near = keys[torch.randint(0, n, (9,), generator=generator)]
    nudge = torch.tensor([0.0, 1e-6, 0.03])[torch.randint(0, 3, (9, 1), generator=generator)]
    far = (torch.randn(3, d, generator=generator) + mean) * scale
    queries = torch.cat([near + nudge * scale * torch.randn(9, d, generator=generator), far])
    distances, nearest = brute(keys, queries)
    radii = distances.median() * 3 * torch.rand(n, generator=generator)
    if radius == "none":
        radii.zero_()
    if radius == "odd":
        radii = torch.where(
            radii > radii.median(), torch.tensor([-1.0, 1e30, torch.inf])[n % 3], radii
        )
        radii[0] = torch.nan
    if radius == "nearest":  # just on the boundary
        radii[nearest] = distances
    with searching(**sizes):
        codebook = book(keys[: n // 2], radii[: n // 2])
        codebook.nearest(queries)
        for key, r in zip(keys[n // 2 :], radii[n // 2 :], strict=True):
            codebook.add(key, torch.zeros(1), r, INFO)
        assert_as_brute(codebook, queries)


@pytest.mark.parametrize("width", [1.0, 0.1])
def test_a_large_codebook_answers_as_a_small_one_would(width):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(50, 64, generator=generator)
    keys = centres[torch.randint(0, 50, (20_000,), generator=generator)]
    keys = keys + width * torch.randn(20_000, 64, generator=generator)
    queries = torch.cat([keys[:20] + 0.01, keys[20:40] + 0.2 * width, 5 + centres[:20]])
    codebook = book(keys, torch.rand(20_000, generator=generator) * 4 * width)
    assert_as_brute(codebook, queries)
    for index in (0, 7_000, 19_997):
        for _ in range(40):  # until the key is where no key was
            codebook.expand(index, queries[-1], 0.5, 1.0, "moving_average")
        assert codebook.answering(queries[-1:])[1].item() == index
        assert_as_brute(codebook, queries)
        codebook.remove(index)
    assert_as_brute(codebook, queries)
    alone = [codebook.nearest(query[None]) for query in queries]
    distances, nearest = codebook.nearest(queries)
    assert torch.equal(torch.cat([found[0] for found in alone]), distances)
    assert torch.equal(torch.cat([found[1] for found in alone]), nearest)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3e38, 1e19])
def test_numbers_too_large_to_square_are_still_right(bad):
    keys = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    queries = torch.cat([keys[:3] + 0.1, torch.full((1, 8), bad), keys[5:6] * bad])
    with searching():
        codebook = book(keys)
        distances, nearest = brute(keys, queries)
        for found, expected in zip(codebook.nearest(queries), (distances, nearest), strict=True):
            assert torch.equal(found.nan_to_num(nan=-1), expected.nan_to_num(nan=-1))
        assert codebook.answering(queries)[1].tolist() == [0, 1, 2, -1, -1]
        codebook.add(torch.full((8,), bad), torch.zeros(1), 1.0, INFO)
        distances, nearest = brute(codebook.keys, queries)
        fires = codebook.inside(distances, nearest)
        assert torch.equal(codebook.answering(queries)[1], nearest.masked_fill(~fires, -1))


def test_the_search_holds_in_autocast_and_outside_inference_mode():
    keys = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    codebook, queries = book(keys), keys[:40] + 1e-3
    tracked = IncrementalLookup(codebook)
    with searching():
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert codebook.answering(queries)[1].tolist() == list(range(40))
        with torch.inference_mode():
            codebook.answering(queries)
            tracked.add(queries)
            assert tracked.answers()[1].tolist() == list(range(1, 41))
        codebook.add(queries[0], torch.zeros(1), 1.0, INFO)
        tracked.add(queries[:1])
        assert tracked.answers()[1].tolist() == [301, *range(2, 41), 301]
        assert_as_brute(codebook, queries)


def test_an_empty_codebook_answers_nothing():
    codebook = Codebook(3, 2)
    for distances, nearest in (
        codebook.nearest(torch.ones(2, 3)),
        codebook.answering(torch.ones(2, 3)),
    ):
        assert distances.tolist() == [torch.inf, torch.inf]
        assert nearest.tolist() == [-1, -1]
    assert codebook.answering(torch.ones(0, 3))[1].tolist() == []
    assert book(torch.ones(40, 3)).answering(torch.ones(0, 3))[1].tolist() == []


def test_the_search_starts_where_it_is_told():
    keys = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    with searching():
        distances, nearest = book(keys).nearest(keys[:50], start=20)
    expected = brute(keys[20:], keys[:50])
    assert torch.equal(distances, expected[0])
    assert torch.equal(nearest, expected[1] + 20)


def assert_tracked(tracked, codebook, queries):
    """Compare the versions with those of a fresh search."""
    expected = torch.zeros(len(queries), dtype=torch.int64)
    if len(codebook) and len(queries):
        distances, nearest = brute(codebook.keys, queries)
        fires = codebook.inside(distances, nearest, tracked.boundary)
        expected = torch.where(fires, codebook.value_versions[nearest], 0)
    assert torch.equal(tracked.answers()[1], expected)


# Near neighbours, duplicates and equal distances are the rule on this grid.
point = st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.sampled_from([0.0, 1e-6, 0.5]))
radius = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 3.0])
change = st.one_of(
    st.tuples(st.just("track"), st.lists(point, max_size=3)),
    st.tuples(st.just("add"), point, radius),
    st.tuples(
        st.just("expand"),
        st.integers(0),
        point,
        st.sampled_from(["add_radius", "to_distance", "moving_average"]),
    ),
    st.tuples(st.just("split"), st.integers(0), point, st.sampled_from(["half", "shrink"])),
    st.tuples(st.sampled_from(["overwrite", "train", "remove"]), st.integers(0)),
)


@settings(max_examples=120, deadline=None)
@given(
    changes=st.lists(change, max_size=25),
    boundary=st.sampled_from(["open", "closed"]),
    every=st.sampled_from([1, 4]),
    plain=st.booleans(),
)
def test_tracked_queries_know_what_answers(changes, boundary, every, plain):
    codebook, queries = Codebook(3, 1), torch.zeros(0, 3)
    tracked = IncrementalLookup(codebook, boundary)
    with searching(PLAIN_WORK=10**9 if plain else 0):
        for number, (what, *how) in enumerate([("track", [(0, 0, 0.0), (1, 0, 0.5)]), *changes]):
            if what == "track":
                new = torch.tensor(how[0]).reshape(-1, 3)
                assert tracked.add(new) == range(len(queries), len(queries) + len(new))
                queries = torch.cat([queries, new])
            elif what == "add":
                codebook.add(torch.tensor(how[0]), torch.zeros(1), how[1], INFO)
            elif len(codebook):
                index = how[0] % len(codebook)
                if what in ("expand", "split"):
                    query = torch.tensor(how[1])
                    distance = (query - codebook.keys[index]).norm()
                    if what == "expand":
                        codebook.expand(index, query, distance, 0.5, how[2])
                    else:
                        new_radius = codebook.split(index, distance, 0.5, how[2])
                        codebook.add(query, torch.zeros(1), new_radius, INFO)
                elif what == "overwrite":
                    codebook.overwrite(index, torch.ones(1), INFO)
                elif what == "train":
                    codebook.set_value(index, torch.ones(1))
                else:
                    codebook.remove(index)
            if number % every == 0:
                assert_tracked(tracked, codebook, queries)
        assert_tracked(tracked, codebook, queries)
        assert len(tracked.queries) == len(queries)


def test_following_a_new_key_measures_that_key_alone(monkeypatch):
    codebook = book(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    tracked = IncrementalLookup(codebook)
    tracked.add(codebook.keys[:30].clone())
    assert tracked.answers()[1].tolist() == list(range(1, 31))
    measured = []
    cdist = torch.cdist

    def counted(keys, queries, **settings):
        measured.append(keys.shape[-2] * queries.shape[-2])
        return cdist(keys, queries, **settings)

    monkeypatch.setattr(torch, "cdist", counted)
    codebook.add(codebook.keys[3] + 0.01, torch.zeros(1), 1.0, INFO)
    codebook.set_value(0, torch.ones(1))
    assert tracked.answers()[1].tolist() == [52, *range(2, 31)]
    assert sum(measured) == 30
    tracked.answers()[1]
    assert sum(measured) == 30


def test_two_hundred_thousand_keys_fit_and_answer():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(200_000, 16, generator=generator)
    codebook = book(keys, 1e-3)
    codebook.add(keys[7] + 3, torch.zeros(1), 1e-3, INFO)
    picked = torch.randint(0, 200_000, (32,), generator=generator)
    distances, nearest = codebook.answering(torch.cat([keys[picked], keys[7:8] + 3, keys[:1] + 9]))
    assert nearest.tolist() == [*picked.tolist(), 200_000, -1]
    assert distances[:-1].max() == 0


def test_spare_room_norms_and_projections_take_less_than_a_third():
    keys = torch.randn(8_000, 512, generator=torch.Generator().manual_seed(0))
    codebook = book(keys, d_out=512)
    codebook.add(keys[0], torch.zeros(512), 1.0, INFO)
    codebook.answering(keys[:32])
    needed = 4 * len(codebook) * (512 + 512 + 1)
    assert needed < codebook.nbytes <= 1.3 * needed


def test_adding_a_key_seldom_copies_the_others():
    codebook, places = Codebook(2, 1), set()
    for _ in range(5_000):
        codebook.add(torch.ones(2), torch.zeros(1), 1.0, INFO)
        places.add(codebook.keys.data_ptr())
    assert len(places) < 25
