"""The package: dependencies with both bounds, extras for the accelerators, and the `deeplearn` command."""

from setuptools import find_packages, setup

GCS = "etils[epath-gcs]>=1.13,<2"  # gs:// for a workdir or for data

setup(
    name="deeplearn",
    version="0.1.0",
    description="Deep learning in JAX and Flax: every model a pure function, every optimizer comparable on every model",
    license="Apache-2.0",
    packages=find_packages(include=["deeplearn*", "experiments*", "kernels*"]),
    package_data={
        "deeplearn.data": ["checksums.tsv"],
        "deeplearn.comparison": ["page.html"],
        "kernels": ["results/*.json"],  # by which attention chooses its implementation
    },
    python_requires=">=3.11,<3.13",
    install_requires=[
        "absl-py>=2.3,<3",
        "array_record>=0.8,<0.9",
        "chex>=0.1.91,<0.2",
        "etils[epath]>=1.13,<2",  # paths in buckets
        "flax>=0.12.4,<0.13",
        "grain>=0.2.15,<0.3",
        "importlib_resources>=6.5,<8",  # tensorflow-datasets imports it and does not declare it
        "jax>=0.10.2,<0.12",
        "matplotlib>=3.10,<4",
        "ml_collections>=1.1,<2",
        "numpy>=2.1,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pillow>=11,<14",
        "plotly>=6.1,<8",  # the report's page
        "psutil>=6,<8",  # the memory that a sweep may take
        "pyarrow>=19,<27",  # runs as Parquet
        "requests>=2.32,<3",  # the data sets' downloads
        "scikit-learn>=1.6,<2",  # the embedded digits
        "scipy>=1.15,<2",  # quasi-random points
        "tensorboardX>=2.6.4,<3",  # event files without TensorFlow
        "tensorflow-datasets>=4.9.10,<4.10",
        "tqdm>=4.67,<5",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.12", GCS],
        "cuda": ["jax[cuda12]>=0.10.2,<0.11; python_version<'3.12'", "jax[cuda13]>=0.11,<0.12; python_version>='3.12'"],
        "gcs": [GCS],
        "dev": [
            "hypothesis>=6.140,<7",
            "pytest>=8.4,<10",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.14,<0.18",
            "selenium>=4.30,<5",  # opens the report in Chromium
            "tensorboard>=2.20,<3",  # reads back, in a test, what the run wrote
        ],
        "peers": ["torch==2.13.0"],  # compared with in tests and benchmarks, never imported by the library
    },
    entry_points={"console_scripts": ["deeplearn=deeplearn.__main__:main"]},
)
