import pytest

from benchmarks.shapes import Shape, build_case
from benchmarks.sides import port
from benchmarks.useful import useful_flops
from parity.environment import deterministic, quietly
from parity.speed import flop_counter


@pytest.mark.parametrize(("algorithm", "length", "k"), [("eagle3", 320, 2), ("hass", 96, 2)])
def test_the_port_does_what_is_useful_and_little_else(algorithm, length, k, tmp_path):
    """What it does beside: the other half of blocks on the attention's diagonal, scores made again backward, and for
    rows outside the loss the last step forward and the projections of query and output backward."""
    shape = Shape(algorithm, length, k)
    with deterministic(), quietly():
        steps = port(build_case(shape, tmp_path / "fixtures", tmp_path, 2), shape, tmp_path / "checkpoints")
        next(steps)  # a verifier's head is tried on states as it is loaded
        with flop_counter() as counter:
            next(steps)
    assert 1 <= counter.get_total_flops() / useful_flops(shape) <= 1.1


def test_a_step_more_costs_the_same_again():
    costs = [useful_flops(Shape("eagle3", 512, k)) for k in (1, 2, 3)]
    assert costs[2] - costs[1] == costs[1] - costs[0] > 0.5 * costs[0]
