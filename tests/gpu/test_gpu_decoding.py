"""Photos that the GPU decodes, against the host: only a card has such a decoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from device.on_device import there
from gpu import decoded

pytestmark = [pytest.mark.gpu, pytest.mark.cuda]


def test_views_are_near_those_of_the_host(tmp_path: Path) -> None:
    """Random crops of turned, gray and progressive photos, of 255 gray values, against libjpeg-turbo's."""
    found = there(tmp_path, partial(decoded.distances, "cuda"), simulated=False)
    assert len(found) == decoded.NUMBER
    assert max(found) < 2


def test_queued_work_keeps_its_memory(tmp_path: Path) -> None:
    """Sums of freed tensors, queued before photos are decoded, against their number: nvJPEG must not write there."""
    assert there(tmp_path, partial(decoded.changed_sums, "cuda"), simulated=False) == 0
