from typing import get_args

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from ladderize import LadderConfig, LadderError
from ladderize.backends import LOWERINGS
from ladderize.config.options import Lowering
from ladderize.config.selection import Selection


@pytest.fixture
def fake_ranks():
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("value", "count", "chosen"),
    [
        ("all", 3, {0, 1, 2}),
        ("1:3", 4, {1, 2}),
        (":2", 4, {0, 1}),
        ("2:", 4, {2, 3}),
        ("last:1", 4, {3}),
        ("last:50%", 4, {2, 3}),
        ("last:50%", 5, {2, 3, 4}),
        ("0,2", 4, {0, 2}),
        ("[0, 2]", 4, {0, 2}),
        ([3, 0], 4, {0, 3}),
        (2, 4, {2}),
    ],
)
def test_selection(value, count, chosen):
    assert Selection.parse(value).resolve(count) == chosen


@pytest.mark.parametrize("value", ["upper", "last:150%", "last", "-1:2", [], [-1], [True], 1.5])
def test_selection_refuses_other_forms(value):
    with pytest.raises(ValueError, match="last:50%"):
        Selection.parse(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [("4:4", "selects none of 4"), ("2:9", "selects 4, 5"), ([7], "there are 0 to 3")],
)
def test_selection_out_of_range(value, message):
    with pytest.raises(ValueError, match=message):
        Selection.parse(value).resolve(4)


def test_selection_larger_than_the_net():
    with pytest.raises(ValueError, match="there are 0 to 3"):
        Selection.parse("last:9").resolve(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stalenes": 1}, "did you mean 'staleness'"),
        ({"max_autotune": True}, 'lowering_options={"max_autotune"'),
        ({"lowering": "inducter"}, "did you mean 'inductor'"),
        ({"verify": "all"}, "'graph', 'code', 'off'"),
        ({"staleness": -1}, "from 0 to 8"),
        ({"staleness": True}, "from 0 to 8"),
        ({"staleness": 9}, "from 0 to 8"),
        ({"launches_ahead": 0}, "from 1 to 64"),
        ({"hardware": "h100"}, "devices: "),
        ({"hardware": 8}, "neither a name nor a Hardware"),
        ({"expect_blocks": 0}, "at least 1"),
        ({"layers": "0:2", "blocks": "0:2"}, "contradict"),
        ({"layers": "upper half"}, "layers='upper half' is not"),
        ({"blocks": []}, "blocks="),
        ({"mesh": "tp"}, "is not a DeviceMesh"),
        ({"mesh": ("tp", 2)}, "neither"),
        ({"lowering": "eager", "lowering_options": {"a": 1}}, "goes with lowering='inductor'"),
        ({"lowering": "aot_eager", "verify": "code"}, "goes with lowering='inductor'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(LadderError) as caught:
        LadderConfig.from_options(options)
    assert message in str(caught.value)


def test_mode_needs_inductor():
    with pytest.raises(LadderError, match="mode="):
        LadderConfig.from_options({"lowering": "eager"}, mode="max-autotune")


def test_every_problem_is_listed():
    with pytest.raises(LadderError) as caught:
        LadderConfig(staleness=-1, verify="x", lowering="y")
    assert len(caught.value.blockers) == 3


@pytest.mark.usefixtures("fake_ranks")
def test_mesh_of_two_axes():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    with pytest.raises(LadderError, match=r'mesh=\("tp", mesh\)'):
        LadderConfig(mesh=mesh)
    with pytest.raises(LadderError, match="'sp' is not among"):
        LadderConfig(mesh=("sp", mesh))
    assert LadderConfig(mesh=("tp", mesh)).device_mesh.size() == 2


def test_every_named_lowering_exists():
    assert set(LOWERINGS) == set(get_args(Lowering))
