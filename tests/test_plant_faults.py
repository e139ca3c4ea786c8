"""That every fault can still be planted; `python tests/plant_faults.py` plants them."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SPEC = spec_from_file_location("plant_faults", Path(__file__).with_name("plant_faults.py"))
plant_faults = sys.modules["plant_faults"] = module_from_spec(SPEC)
SPEC.loader.exec_module(plant_faults)


@pytest.mark.parametrize("fault", plant_faults.FAULTS, ids=lambda fault: fault.what)
def test_its_line_is_there(fault) -> None:
    source = (plant_faults.KERNELS / fault.path).read_text()
    assert fault.line in source
