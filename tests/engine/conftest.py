from __future__ import annotations

from pathlib import Path

import pytest
from engine_rig import Case, make_cases


@pytest.fixture(scope="session")
def llava_cases(small_llava: Path) -> list[Case]:
    return make_cases(small_llava, 16, pictures=1)


@pytest.fixture(scope="session")
def llama_cases(small_llama: Path) -> list[Case]:
    return make_cases(small_llama, 6, pictures=0)
