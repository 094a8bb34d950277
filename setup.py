"""Metadata, dependencies and extras of crackscan; the tools' settings stand in ``pyproject.toml``."""

from pathlib import Path

from setuptools import setup

# One minor version of TensorFlow: the converter to LiteRT and Keras' saving change between them.
TRAIN = ["tensorflow>=2.21,<2.22", "tensorboard>=2.20", "matplotlib>=3.10", "pydot>=4"]
GCP = ["apache-beam[gcp]>=2.77,<3", "gcsfs>=2026.1"]
DEV = ["pytest>=9", "ruff>=0.17,<0.18", "mypy>=2.4,<3", "scikit-learn>=1.8"]

setup(
    name="crackscan",
    version="0.1.0",
    description="Distributed batch image classification, made for concrete-crack inspection",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.11,<3.13",
    packages=["model", "pipelines", "jobs"],
    package_data={"model": ["pretrained/**"]},
    install_requires=[
        "apache-beam>=2.77,<3",
        "ai-edge-litert>=2.3,<3",
        "numpy>=2.1",
        "pyarrow>=20",
        "pillow>=12,<13",
        "duckdb>=2",
        "fsspec>=2026.1",
        "google-crc32c>=1.7",
        "protobuf>=6,<7",
        "pooch>=1.8",
        "rich>=14",
        "tqdm>=4.67",
    ],
    extras_require={"train": TRAIN, "gcp": GCP, "dev": DEV, "all": TRAIN + GCP + DEV},
)
