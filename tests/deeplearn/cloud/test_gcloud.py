"""What gcloud is asked for, and whose words are read when it fails."""

import pytest

from deeplearn.cloud import gcloud

# As docs.cloud.google.com/tpu/docs/runtimes names them for JAX.
IMAGES = {
    "v6e-8": "v2-alpha-tpuv6e",
    "v5p-8": "v2-alpha-tpuv5",
    "v5litepod-16": "v2-alpha-tpuv5-lite",
    "v4-8": "tpu-ubuntu2204-base",
    "v3-8": "tpu-ubuntu2204-base",
    "v2-8": "tpu-ubuntu2204-base",
}


@pytest.mark.parametrize("accelerator", IMAGES)
def test_the_image_of_an_accelerator(accelerator):
    assert gcloud.runtime(gcloud.Tpu("a", "z", accelerator)) == IMAGES[accelerator]


@pytest.mark.parametrize("line, said", [("echo out; echo err >&2", "err\n"), ("echo out; echo >&2", "out\n")])
def test_what_a_program_says_that_fails(line, said):
    """On standard error, or if there is nothing, on standard output."""
    with pytest.raises(gcloud.Failed) as error:
        gcloud.call(["bash", "-c", f"{line}; exit 1"], gcloud.Failed)
    assert str(error.value) == said
