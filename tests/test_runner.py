"""DirectRunner and the default are Beam's in-process runner; nothing is downloaded."""

import pytest

from pipelines.runner import IN_PROCESS_RUNNER, is_in_process, make_pipeline, pipeline_options


@pytest.mark.parametrize(
    "arguments", [[], ["--runner=directrunner"], ["--runner=DirectRunner"], ["--runner", "FnApiRunner"]]
)
def test_the_default_and_direct_runner_run_in_this_process(arguments):
    assert is_in_process(pipeline_options(arguments))
    assert type(make_pipeline(arguments).runner).__name__ == "FnApiRunner"
    assert IN_PROCESS_RUNNER.endswith(type(make_pipeline(arguments).runner).__name__)


def test_another_runner_stays_what_it_is():
    assert not is_in_process(pipeline_options(["--runner=FlinkRunner", "--flink_master=localhost:8081"]))
