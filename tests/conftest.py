"""Which files go first, and the fixtures, where tests are run."""

import gc

import pytest

# With --dist loadfile a worker takes whole files: the long ones first, so that none is left over for one worker alone.
LONG = ("test_notebooks", "test_imports", "test_cli", "test_resume", "test_running", "test_study_induction_head")
LONG += ("test_turns", "test_circuits_proof", "test_study_reproduce_paper", "test_readme", "test_circuits_methods")


def pytest_configure(config: pytest.Config) -> None:
    """The process that only hands out files to others does without the fixtures, and so without torch.

    And xdist would begin with the files of most tests.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    hands_out = config.getoption("dist", "no") != "no" and config.getoption("tx", None)  # xdist's, not a worker's
    if not hands_out:
        gc.disable()  # what is imported is a million objects and no garbage: looked through by every full collection
        config.pluginmanager.import_plugin("small_models")
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a file, and among the others, everything stays in its order."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
