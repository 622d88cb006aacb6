"""Tests marked `gpu` are skipped, with the reason, where torch has no CUDA device."""

import pytest

from repshift_cli.machine import why_no_cuda


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = why_no_cuda() if marked else None
    for item in marked:
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))
