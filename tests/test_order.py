import pytest

from steadyrl.order import problem_indices, seed_of


def read(seed: int, steps: int, count: int, size: int | None) -> list[int]:
    return [index for step in range(1, steps + 1) for index in problem_indices(seed, step, count, size)]


def test_an_endless_task_is_read_in_order():
    assert problem_indices(3, 1, 4, None) == [0, 1, 2, 3]
    assert problem_indices(3, 3, 4, None) == [8, 9, 10, 11]
    assert read(0, 25, 4, None) == list(range(100))


@pytest.mark.parametrize(("size", "count"), [(12, 4), (10, 4), (3, 7), (1, 2)])
def test_every_epoch_of_a_finite_task_is_a_permutation(size, count):
    found = read(7, 5 * size, count, size)
    for start in range(0, len(found) - size + 1, size):
        assert sorted(found[start : start + size]) == list(range(size))


def test_epochs_and_seeds_are_shuffled_differently():
    size = 50
    one, two = read(1, 2, size, size)[:size], read(1, 2, size, size)[size:]
    assert one != two
    assert one != list(range(size))
    assert problem_indices(2, 1, size, size) != one


def test_a_step_is_a_pure_function_of_seed_and_step():
    forwards = [problem_indices(5, step, 6, 20) for step in range(1, 30)]
    backwards = [problem_indices(5, step, 6, 20) for step in reversed(range(1, 30))]
    assert forwards == backwards[::-1]


def test_seeds_differ_by_every_part_and_never_change():
    parts = [(0, "rollout/1"), (0, "rollout/2"), (1, "rollout/1"), (0, "evaluate"), (0, "epoch", 1), (0, "epoch", 2)]
    seeds = [seed_of(*p) for p in parts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "evaluate") == 3906298266573556936  # runs of earlier versions must still resume
