"""Commands render no picture here, but where a test asks for `pictures`: that takes longer than a tiny run."""

from pathlib import Path

import pytest


@pytest.fixture
def pictures():
    """The pictures of this test's runs are really rendered."""


@pytest.fixture(autouse=True)
def unrendered(request, monkeypatch):
    """Our own part of every picture is done all the same: panels, curves, labels."""
    from matplotlib.figure import Figure

    def savefig(figure, out, **options):
        out.write(PNG) if hasattr(out, "write") else Path(out).write_bytes(PNG)

    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Figure, "tight_layout", lambda figure: None)
        monkeypatch.setattr(Figure, "savefig", savefig)


PNG = b"\x89PNG"
