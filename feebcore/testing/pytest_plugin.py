"""For authors of parts: the contract of a part's kind as tests, one a check, with the check's sentence as failure text.

    # test_mine.py
    from feebcore.testing.pytest_plugin import contract

    test_mine = contract("attentions/mine", plugin="../mine.py")

pytest finds this module by itself where feeb is installed. Until a test asks for `feeb_check` it loads neither torch nor
any part, so it costs other test suites next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

MARK = "feeb_part"


def contract(part: str, *, plugin: str = "", full: bool = False, **options: Any) -> Callable[..., None]:
    """A test function that pytest runs once for every check of a part.

    part: `kind/name`. plugin: the file that offers it, relative to the test's file; none for an installed plugin. full:
    also the slow checks. options: of the part, in place of its defaults (or of `example` on its config class).
    """

    @pytest.mark.feeb_part(part, plugin=plugin, full=full, options=options)
    def keeps_its_contract(feeb_check: Callable[[], None]) -> None:
        feeb_check()

    return keeps_its_contract


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}(part, plugin='', full=False, options={{}}): the part, as kind/name, whose checks `feeb_check` runs")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `feeb_check` runs once for every check of the part that its mark names."""
    if "feeb_check" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker(MARK)
    if mark is None:
        raise pytest.UsageError(f"{metafunc.definition.nodeid} takes feeb_check; say of which part with contract('kind/name') or @pytest.mark.{MARK}")
    subject, checks = _subject(metafunc.definition.path.parent, *mark.args, **mark.kwargs)
    metafunc.parametrize("feeb_check", [(subject, item) for item in checks], ids=[item.name for item in checks], indirect=True)


def _subject(folder: Any, part: str, plugin: str = "", full: bool = False, options: dict[str, Any] | None = None) -> tuple[Any, list[Any]]:
    """The part as a Candidate, and its checks."""
    from feebcore.errors import FeebError, did_you_mean
    from feebcore.hookspecs import KINDS
    from feebcore.parts import resolve_part
    from feebcore.registry import get_registry
    from feebcore.testing.framework import applicable, candidate, example_options

    kind, _, name = part.partition("/")
    try:
        if not name or kind not in KINDS:
            raise FeebError(f"{part!r} is not a part; write kind/name; {did_you_mean(kind, KINDS)}")
        registry = get_registry(((folder / plugin).resolve(),) if plugin else ())
        spec = registry.resolve(kind, name)
        chosen = resolve_part(kind, {"name": spec.full_name, **example_options(spec), **options}, registry) if options else spec.full_name
        subject = candidate(kind, chosen, registry)
    except (FeebError, ValueError) as error:
        raise pytest.UsageError(str(error)) from None
    return subject, applicable(subject, full=full)


@pytest.fixture
def feeb_check(request: pytest.FixtureRequest) -> Callable[[], None]:
    """`feeb_check()` runs this test's check; it fails with what was seen, what that means and what usually causes it."""
    subject, item = request.param

    def run() -> None:
        from feebcore.registry import use_registry
        from feebcore.testing.framework import run_check

        with use_registry(subject.registry):
            result = run_check(item, subject)
        if not result.passed:
            pytest.fail(str(result), pytrace=False)
        if result.skipped:
            pytest.skip(result.skipped)

    return run
