"""The rigs of the campaigns, each made once for all tests of a worker; and the option --case."""

import sys

import pytest

from campaign import Rig, parse_case


@pytest.fixture(scope="session")
def rig_of(tmp_path_factory):
    """rig_of(layout, upload mode): the Rig; it belongs to the process that asks."""
    if sys.platform != "linux":
        pytest.skip("needs /proc and a subreaper, as Linux has them")
    rigs = {}

    def rig_of(layout, mode):
        if (layout, mode) not in rigs:
            rigs[layout, mode] = Rig(tmp_path_factory.mktemp("rig"), layout, mode)
        return rigs[layout, mode]

    yield rig_of
    for rig in rigs.values():
        rig.stop()


@pytest.fixture
def faults_of(rig_of):
    """faults_of(case): what is wrong after one run, in words."""

    def faults_of(case):
        layout, mode, point = parse_case(case)
        return rig_of(layout, mode).faults(point)

    return faults_of
