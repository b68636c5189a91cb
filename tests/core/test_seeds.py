from hypothesis import given
from hypothesis import strategies as st

from aloe.core.seeds import seed_for


def test_a_seed_is_the_first_63_bits_of_the_hash_of_its_parts() -> None:
    # printf '17\x1fdare\x1fmodel' | sha256sum -> 68d33962df5e10f1...; shifted right by one bit. This number must never change.
    assert seed_for(17, "dare", "model") == 0x68D33962DF5E10F1 >> 1 == 3776722048423757944


def test_other_names_give_other_seeds() -> None:
    names = [("dare", "a", "b"), ("dare", "b", "a"), ("dare", "ab", ""), ("dare", "", "ab"), ("dare", "a b"), ("dare",), ("mix", "a", "b"), ()]
    assert len({seed_for(*name) for name in names}) == len(names)


def test_a_seed_does_not_depend_on_what_was_drawn_before() -> None:
    first = [seed_for(1, "x", n) for n in range(5)]
    assert [seed_for(1, "x", n) for n in reversed(range(5))] == first[::-1]


def test_half_of_all_seeds_have_any_given_bit() -> None:
    seeds = [seed_for("bits", n) for n in range(2000)]
    for bit in range(63):
        share = sum(s >> bit & 1 for s in seeds)
        assert abs(share - 1000) < 5 * 22.4  # sigma = sqrt(2000 / 4) = 22.4


@given(st.lists(st.integers() | st.text()))
def test_every_seed_fits_into_63_bits(parts: list[int | str]) -> None:
    assert 0 <= seed_for(*parts) < 2**63
